"""MedMNIST's sets, with the kind of their images."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from recipes.data.evaluation.types import EvaluationSet
from recipes.data.medmnist.npz import medmnist_source
from recipes.data.studies import Study, StudySplit

MODALITIES: dict[str, str | None] = {
    "pathmnist": "pathology",
    "chestmnist": "xray",
    "dermamnist": None,
    "octmnist": None,
    "pneumoniamnist": "xray",
    "retinamnist": "fundus",
    "breastmnist": "ultrasound",
    "bloodmnist": "pathology",
    "tissuemnist": "pathology",
    "organamnist": "ct",
    "organcmnist": "ct",
    "organsmnist": "ct",
}
"""Kind of the images of each two-dimensional set. Photographs of skin and optical coherence tomography are none of
the six kinds; smears of blood and sections of kidney are microscopy and stand with pathology."""


@dataclass(frozen=True, eq=False)
class OneModality:
    """A split of which all images are of one kind.

    Attributes:
        split: The split.
        modality: The kind, ``None`` where it is not known.
    """

    split: StudySplit
    modality: str | None

    @property
    def ids(self) -> Sequence[str]:
        """Ids of the studies."""
        return self.split.ids

    @property
    def labels(self) -> NDArray[np.float32]:
        """Shape ``(N, C)``: 1, 0 or NaN."""
        return self.split.labels

    @property
    def groups(self) -> Sequence[str]:
        """Patient of each study."""
        return self.split.groups

    @property
    def texts(self) -> Sequence[str | None]:
        """Text of each study, ``None`` where there is none."""
        return self.split.texts

    @property
    def modalities(self) -> Sequence[str | None]:
        """The one kind, for every image."""
        return (self.modality,) * len(self.split)

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> Study:
        """Returns one study with its kind."""
        return replace(self.split[index], modality=self.modality)


def medmnist_set(
    data: str | Path,
    *,
    size: int = 28,
    root: str | Path | None = None,
    download: bool = False,
    modality: str | None = None,
) -> EvaluationSet:
    """Reads a MedMNIST set (`recipes.data.medmnist.npz.medmnist_source`).

    Args:
        data: A flag, or the path of an ``.npz`` of the layout.
        size: For a flag, side of the images in pixels.
        root: For a flag, folder of the files; by default medmnist's own.
        download: For a flag, whether to download a file that is not there.
        modality: Kind of the images; by default what `MODALITIES` says of the flag, or of the flag that a file's
            name begins with.

    Raises:
        ValueError: If the file is missing, damaged or not of the layout.
    """
    source = medmnist_source(data, size=size, root=root, download=download)
    flag = source.name if source.name in MODALITIES else source.name.partition("_")[0]
    modality = MODALITIES.get(flag) if modality is None else modality
    return EvaluationSet(
        name=source.name,
        task=source.task,
        classes=source.classes,
        modality=modality,
        splits={name: OneModality(split, modality) for name, split in source.splits()},
        prompts=flag if flag in MODALITIES else None,
        notes=source.notes,
    )
