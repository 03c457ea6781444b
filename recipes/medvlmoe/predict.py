"""Predictions for new images with a trained run: a table, and on request json and pictures of the attention."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from recipes.data.arguments import Spelling, spelled
from recipes.data.image_files import ImageFiles
from recipes.data.image_folders import image_files
from recipes.data.tables.text_columns import text_columns
from recipes.data.tables.unlabelled import unlabelled_images, unlabelled_table
from recipes.medvlmoe.modalities import check_something_is_read, warn_of_missing_images
from recipes.medvlmoe.model import reads_text
from recipes.medvlmoe.predicted_files import overlay_names, write_overlays, write_records
from recipes.medvlmoe.sources import texts_of
from recipes.medvlmoe.trained import TrainedRun, load_run
from recipes.shared.outputs import check_file, check_folder

SPELLING = Spelling(
    {
        "image_column": "--image-column",
        "text_column": "--text-column",
        "image_root": "--image-root",
        "force_dicom": "--force-dicom",
    }
)
"""How the arguments of the readers are typed."""


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
    json: Path | None = None,
    overlays: Path | None = None,
) -> pd.DataFrame:
    """Predicts the findings of images.

    Texts are read as in training, with one difference: where the run keeps a section of each report, a note without any
    header is used whole.

    Args:
        run: Folder of the run.
        images: Image files, or folders of them.
        text: Report or note that belongs to the image; with a single one, or alone.
        csv: Table of images and texts instead; a row may lack either.
        image_column: Its column of images, by default the one of the run's settings.
        text_column: Its column of texts, by default the one of the run's settings.
        image_root: Folder at which the paths in the csv begin, by default the csv's.
        force_dicom: Whether DICOM files without preamble and file meta group are read; always if the run does.
        checkpoint: ``"best"`` or ``"last"``.
        json: File to write: probabilities, experts and attention maps of each image.
        overlays: Folder to write, for each image, its attention map over it as a picture and the map as a csv.

    Warns:
        UserWarning: If some texts lack the section that the run reads; their findings are predicted without a text. If
            a csv seems to hold texts that are not read, or none where the run reads them. If images are missing and the
            run was trained without dropping any.

    Returns:
        One row per study: ``image`` (blank without one), one ``prob:CLASS`` each, with experts ``experts`` and
        ``gates``, and one ``calibrated:CLASS`` each if the run was evaluated; ``attrs["uncalibrated"]`` says why there
        are none.

    Raises:
        ValueError: If there is nothing to predict, images or a text and a csv are given, one text goes with several
            images or with a run that reads none, a study has neither image nor text, no text has the section that the
            run reads, a csv lacks a column or its rows do not fit its header, an image cannot be read, an output cannot
            be written, or ``overlays`` of a model without an attention map are asked for.
    """
    if (bool(images) or text is not None) == (csv is not None):
        raise ValueError("give either images, a text, or both, or a csv (--image, --text or --csv).")
    images = image_files(images)
    if text is not None and len(images) > 1:
        raise ValueError(f"text belongs to a single image, got {len(images)} images; use a csv (--csv) for several.")
    if image_root is not None and csv is None:
        raise ValueError("image_root (--image-root) is where the paths of a csv begin: leave it out with images.")
    if csv is None and (image_column or text_column):
        raise ValueError(
            "image_column and text_column (--image-column, --text-column) name columns of a csv: leave them out with "
            "images."
        )
    if json is not None:
        check_file(json, "--json")
    if overlays is not None:
        check_folder(overlays, "--overlays")
    trained = load_run(run, checkpoint)
    _check_texts(trained, text, text_column, alone=not images)
    if overlays is not None and not trained.has_attention():
        raise ValueError(
            f"overlays (--overlays): the model of {run} (variant {trained.config.model.variant}) has no attention map "
            "over the image: leave them out."
        )
    common: dict[str, Any] = {
        "num_classes": len(trained.classes),
        "force_dicom": force_dicom or trained.config.data.force_dicom,
    }
    if csv is not None:
        manifest, reads = trained.config.data.manifest, trained.reads_text
        columns = {
            "image_column": image_column or manifest.image_column,
            "text_column": (text_column or manifest.text_column) if reads else None,
        }
        with spelled(SPELLING):
            split = unlabelled_table(csv, **columns, image_root=image_root, blank_images=reads, **common)
        _warn_of_unread_texts(csv, columns, split.texts, trained)
    else:
        split = unlabelled_images(tuple(images), text, **common)
    _warn_of_lost_texts(split, trained)
    texts = {"the table": texts_of(split, trained.config.data, whole_notes=True)}
    check_something_is_read(str(csv or "text"), [("the table", split)], texts, reads_text=trained.reads_text)
    warn_of_missing_images(split, run, trained.config.train.drop_image)
    return _predicted(split, trained, json, overlays)


def _predicted(split: ImageFiles, trained: TrainedRun, json: Path | None, overlays: Path | None) -> pd.DataFrame:
    """Runs the model and writes what is asked for."""
    need_attention = json is not None or overlays is not None
    predictions = trained.predict(split, need_attention=need_attention, title="predict")
    maps = trained.attention_maps(predictions)
    names = None
    if overlays is not None:
        assert maps is not None
        names = overlay_names(split.paths)
        write_overlays(overlays, names, split, trained.model.image_encoder.spec.size, maps)
    calibrated = trained.calibrated(predictions)
    if json is not None:
        write_records(json, trained, split.paths, predictions, calibrated, maps, names)
    columns = {"image": list(split.paths)} | predictions.columns(trained.classes, trained.config.model.top_k)
    if calibrated is not None:
        columns |= {f"calibrated:{name}": calibrated[:, k] for k, name in enumerate(trained.classes)}
    table = pd.DataFrame(columns)
    table.attrs["uncalibrated"] = trained.why_uncalibrated
    return table


def _check_texts(trained: TrainedRun, text: str | None, text_column: str | None, *, alone: bool) -> None:
    """Refuses a text that would not be read."""
    if text is not None and not trained.reads_text:
        how = " To train with texts, name their column (train --text-column)." * reads_text(trained.config.model)
        raise ValueError(f"text: {trained.folder} {trained.why_no_text} and reads none, so leave it out (--text).{how}")
    if text is not None and not text.strip():
        remedy = "or give an image (--image)" if alone else "to predict from the image alone"
        raise ValueError(f"text is blank: leave it out (--text) {remedy}.")
    if text_column is not None and not trained.reads_text:
        raise ValueError(
            f"text_column: {trained.folder} {trained.why_no_text} and reads none, so leave it out (--text-column)."
        )


def _warn_of_unread_texts(
    csv: Path, columns: dict[str, str | None], texts: Sequence[str | None], trained: TrainedRun
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
        why = f"{trained.folder} {trained.why_no_text}"
        how = f"name it with --text-column {name!r}" if trained.reads_text else why
        warnings.warn(f"{csv}: column {name!r} seems to hold texts, and no text is read: {how}", stacklevel=3)


def _warn_of_lost_texts(split: ImageFiles, trained: TrainedRun) -> None:
    """Warns of texts that count as none because they lack the section that the run reads."""
    section = trained.config.data.manifest.text_section
    if section is None or not trained.reads_text:
        return
    read = texts_of(split, trained.config.data, whole_notes=True)
    lost = sum(text is not None and part is None for text, part in zip(split.texts, read, strict=True))
    if lost:
        warnings.warn(
            f"{lost} of {sum(text is not None for text in split.texts)} texts have headers but no section {section!r}, "
            "which is what the run reads: their findings are predicted without a text",
            stacklevel=3,
        )
