"""The real sets, and the settings with which the preset ``tiny`` is trained on each."""

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from recipes.medvlmoe.config import Balance, Config, DataConfig, ManifestConfig, tiny

METHODS: tuple[Balance, Balance] = ("switch", "fitted")
"""How experts are balanced: as it was, and as it is by default."""

MARGIN = 0.02
"""AUROC that may be lost and still counts as not inferior."""


class RealSet(NamedTuple):
    """A set with its settings.

    Attributes:
        title: Its name.
        file: Below the folder of the sets.
        image_size: Side of the images, in pixels.
        epochs: Of the training.
        manifest: How a csv is read.
    """

    title: str
    file: str
    image_size: int
    epochs: int
    manifest: ManifestConfig = ManifestConfig()

    def config(self, root: Path, method: Balance, seed: int, out: Path) -> Config:
        """Returns the settings of a run."""
        config = tiny()
        return replace(
            config,
            out=out,
            seeds=(seed,),
            data=DataConfig(data=str(root / self.file), manifest=self.manifest),
            model=replace(config.model, image_size=self.image_size),
            train=replace(config.train, balance=method, epochs=self.epochs, accelerator="cpu"),
        )


SETS = {
    "breastmnist": RealSet("BreastMNIST", "medmnist_layout/breastmnist.npz", 32, 10),
    "pneumoniamnist": RealSet("PneumoniaMNIST", "medmnist_layout/pneumoniamnist.npz", 32, 3),
    "covid_cxr": RealSet(
        "covid-chestxray",
        "covid_cxr/metadata.csv",
        64,
        10,
        ManifestConfig(
            text_column="clinical_notes",
            label_columns=("COVID-19", "Pneumonia", "Viral", "Bacterial", "Fungal", "ARDS", "No Finding"),
            group_column="patientid",
        ),
    ),
}
"""Every set by its name."""
