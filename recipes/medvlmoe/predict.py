"""Stage 3: diagnosing new images with a trained run."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from recipes.data.image_folders import image_files
from recipes.data.tables.text_columns import text_columns
from recipes.data.tables.unlabelled import unlabelled_images, unlabelled_table
from recipes.medvlmoe.build import load_model
from recipes.medvlmoe.data import make_loader, texts_of
from recipes.medvlmoe.inference import dataset_of, predict_batches
from recipes.shared.runs import run_device


def main(
    run: Path,
    *,
    images: Sequence[Path] = (),
    text: str | None = None,
    csv: Path | None = None,
    image_root: Path | None = None,
    image_column: str | None = None,
    text_column: str | None = None,
    force_dicom: bool = False,
    checkpoint: str = "best",
) -> pd.DataFrame:
    """Diagnoses images.

    Texts are read as in training, with one difference: where the run keeps a section of each report, a note without any
    header is used whole.

    Args:
        run: Folder of the run.
        images: Image files, or folders of them.
        text: Report or note that belongs to the image; only with a single one.
        csv: Table of images and texts instead.
        image_column: Its column of images, by default the one of the run's settings.
        text_column: Its column of texts, by default the one of the run's settings.
        image_root: Folder at which the paths in the csv begin, by default the csv's.
        force_dicom: Whether DICOM files without preamble and file meta group are read; always if the run does.
        checkpoint: ``"best"`` or ``"last"``.

    Warns:
        UserWarning: If some texts lack the section that the run reads; their findings are predicted without a text. If
            a csv seems to hold texts that are not read, or none where the run reads them.

    Returns:
        One row per image: ``image``, one ``prob:CLASS`` each, and, with experts, ``experts``, ``gates``.

    Raises:
        ValueError: If there is nothing to diagnose, images and a csv are given, one text goes with several images or
            with a run that reads none, no text has the section that the run reads, a csv lacks a column or its rows
            do not fit its header, or an image cannot be read.
    """
    if bool(images) == (csv is not None):
        raise ValueError("give either images or a csv (--image or --csv).")
    images = image_files(images)
    if text is not None and len(images) != 1:
        raise ValueError(f"text belongs to a single image, got {len(images)} images; use a csv (--csv) for several.")
    if image_root is not None and csv is None:
        raise ValueError("image_root (--image-root) is where the paths of a csv begin: leave it out with images.")
    if csv is None and (image_column or text_column):
        raise ValueError(
            "image_column and text_column (--image-column, --text-column) name columns of a csv: leave them out with "
            "images."
        )
    model, config, classes, _ = load_model(run, checkpoint)
    reads = model.text_encoder is not None and config.data.use_text
    if text is not None and not reads:
        raise ValueError(
            f"text: {run} was trained without texts and reads none, so leave it out (--text). To train with texts, "
            "name their column (train --text-column)."
        )
    if text is not None and not text.strip():
        raise ValueError("text is blank: leave it out (--text) to predict from the image alone.")
    if text_column is not None and not reads:
        raise ValueError(
            f"text_column: {run} was trained without texts and reads none, so leave it out (--text-column)."
        )
    common: dict[str, Any] = {
        "num_classes": len(classes),
        "force_dicom": force_dicom or config.data.force_dicom,
    }
    if csv is not None:
        manifest = config.data.manifest
        columns = {
            "image_column": image_column or manifest.image_column,
            "text_column": (text_column or manifest.text_column) if reads else None,
        }
        split = unlabelled_table(csv, **columns, image_root=image_root, **common)
        _warn_of_unread_texts(csv, columns, split.texts, run, reads=reads)
    else:
        split = unlabelled_images(tuple(images), text, **common)
    section = config.data.manifest.text_section
    if section is not None and reads:
        _warn_of_lost_texts(split.texts, texts_of(split, config.data, whole_notes=True), section)
    dataset = dataset_of(split, config, model, whole_notes=True)
    loader = make_loader(dataset, config.train, seed=None)
    device = run_device(config.train.accelerator)
    predictions = predict_batches(model.to(device), loader, device=device, title="predict")
    table: dict[str, Any] = {"image": list(split.paths)}
    return pd.DataFrame(table | predictions.columns(classes, config.model.top_k))


def _warn_of_unread_texts(
    csv: Path, columns: dict[str, str | None], texts: Sequence[str | None], run: Path, *, reads: bool
) -> None:
    """Warns of a csv whose texts are not read, or that holds none where the run reads them."""
    column = columns["text_column"]
    if column is not None:
        if not any(texts):
            warnings.warn(
                f"{csv}: column {column!r} is blank in every row: all findings are predicted without a text",
                stacklevel=3,
            )
        return
    known = {name for name in columns.values() if name is not None}
    for name in text_columns(csv, known):
        remedy = f"name it with --text-column {name!r}" if reads else f"{run} was trained without texts"
        warnings.warn(f"{csv}: column {name!r} seems to hold texts, and no text is read: {remedy}", stacklevel=3)


def _warn_of_lost_texts(texts: Sequence[str | None], read: Sequence[str | None], section: str) -> None:
    """Warns of texts that count as none because they lack the section that the run reads."""
    lost = sum(text is not None and part is None for text, part in zip(texts, read, strict=True))
    if lost:
        warnings.warn(
            f"{lost} of {sum(text is not None for text in texts)} texts have headers but no section {section!r}, which "
            "is what the run reads: their findings are predicted without a text",
            stacklevel=3,
        )
