"""Stage 3: diagnosing new images with a trained run."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from recipes.data.images.read import read_image
from recipes.data.studies import Study
from recipes.medvlmoe.build import load_model
from recipes.medvlmoe.config import Config
from recipes.medvlmoe.data import make_loader
from recipes.medvlmoe.evaluate import dataset_of
from recipes.medvlmoe.inference import predict_batches


@dataclass(frozen=True)
class UnlabelledSplit:
    """Images without labels, as a split of studies.

    Attributes:
        paths: The images.
        texts: Their texts.
        num_classes: ``C``; every label is NaN.
    """

    paths: tuple[Path, ...]
    texts: tuple[str | None, ...]
    num_classes: int

    @property
    def labels(self) -> NDArray[np.float32]:
        """All unknown."""
        return np.full((len(self.paths), self.num_classes), np.nan, np.float32)

    @property
    def ids(self) -> tuple[str, ...]:
        """The paths."""
        return tuple(map(str, self.paths))

    @property
    def groups(self) -> tuple[str, ...]:
        """Every image is its own group."""
        return self.ids

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Study:
        path = self.paths[index]
        return Study(str(path), str(path), read_image(path), self.texts[index], self.labels[index])


def main(
    run: Path,
    *,
    images: Sequence[Path] = (),
    text: str | None = None,
    csv: Path | None = None,
    checkpoint: str = "best",
) -> pd.DataFrame:
    """Diagnoses images.

    Args:
        run: Folder of the run.
        images: Image files.
        text: What is known of them; only with a single image.
        csv: Table of images and texts instead, read as the run's manifest settings say.
        checkpoint: ``"best"`` or ``"last"``.

    Returns:
        One row per image: ``image``, one ``prob:CLASS`` each, and, with experts, ``experts``, ``gates``.

    Raises:
        ValueError: If there is nothing to diagnose, both ways are given, one text goes with several images,
            a csv lacks a column, or an image cannot be read.
    """
    if bool(images) == (csv is not None):
        raise ValueError("give either images or a csv.")
    if text is not None and len(images) != 1:
        raise ValueError(f"text belongs to a single image, got {len(images)} images; use a csv for several.")
    model, config, classes, _ = load_model(run, checkpoint)
    paths, texts = _from_csv(csv, config) if csv is not None else (tuple(images), (text,) * len(images))
    split = UnlabelledSplit(paths, texts, len(classes))
    loader = make_loader(dataset_of(split, config, model), config.train, seed=None)
    device = torch.device("cuda" if torch.cuda.is_available() and config.train.accelerator != "cpu" else "cpu")
    found = predict_batches(model.to(device), loader, device=device, title="predict")
    columns: dict[str, Any] = {"image": [str(path) for path in paths]}
    return pd.DataFrame(columns | found.columns(classes, config.model.top_k))


def _from_csv(csv: Path, config: Config) -> tuple[tuple[Path, ...], tuple[str | None, ...]]:
    if not csv.is_file():
        raise ValueError(f"{csv} does not exist.")
    manifest = config.data.manifest
    wanted = [manifest.image_column] + ([manifest.text_column] if manifest.text_column else [])
    table = pd.read_csv(csv, dtype=str, keep_default_na=False)
    for column in wanted:
        if column not in table:
            raise ValueError(f"{csv} lacks the column {column!r}; it has {list(table.columns)}.")
    paths = tuple(csv.parent / name for name in table[manifest.image_column])
    if manifest.text_column is None:
        return paths, (None,) * len(paths)
    return paths, tuple(text.strip() or None for text in table[manifest.text_column])
