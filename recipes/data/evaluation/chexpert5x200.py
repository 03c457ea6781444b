"""CheXpert 5x200: a thousand frontal radiographs, each with exactly one of five findings."""

import re
from pathlib import Path

import numpy as np

from recipes.data.evaluation.assemble import assemble
from recipes.data.evaluation.columns import IMAGE_COLUMNS, column_named
from recipes.data.evaluation.labelled_images import labelled_images
from recipes.data.evaluation.types import EvaluationSet
from recipes.data.image_files import OnBadImage, file_reader
from recipes.data.tables.columns import filled
from recipes.data.tables.csv_file import read_table
from recipes.data.tables.labels import is_blank, labels_from_columns

CLASSES = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion")
_TABLES = ("chexpert-5x200.csv", "chexpert_5x200.csv")
_REPORT = "Report Impression"
_PER_CLASS = 200


def chexpert_5x200(
    root: str | Path,
    *,
    image_column: str | None = None,
    image_root: str | Path | None = None,
    on_bad_image: OnBadImage = "error",
    force_dicom: bool = False,
) -> EvaluationSet:
    """Reads CheXpert 5x200.

    The table has a row per image: its path (``CheXpert-v1.0-small/train/patient38614/study1/view1_frontal.jpg``),
    the 14 labels of CheXpert and the column ``Report Impression``, which becomes the text. The target is the one
    finding of five that is 1; uncertain (-1) and blank labels do not count as present. All of it is for test.

    Args:
        root: The table, or the folder that holds it as ``chexpert-5x200.csv`` or ``chexpert_5x200.csv``.
        image_column: Column of paths, by default ``imgpath`` or another usual name.
        image_root: Folder that the paths begin at, by default the table's.
        on_bad_image: What to do about files that cannot be read.
        force_dicom: Whether DICOM files without preamble and file meta group are read.

    Raises:
        ValueError: If the table, a column or an image is missing, a label is none of 1, 0, -1 and blank, or a
            row has none or several of the five findings.

    Reference:
        Huang et al., GLoRIA, ICCV 2021, which drew the set from CheXpert's training images.
    """
    csv = _find(Path(root))
    image_column = column_named(csv, image_column, ("imgpath", "Path", *IMAGE_COLUMNS), "image_column")
    table = read_table(csv, [image_column, *CLASSES, _REPORT], arguments={image_column: "image_column"})
    paths = filled(table[image_column], image_column, str(csv))
    labels = labels_from_columns(
        {name: table[name] for name in CLASSES}, task="multi-label", uncertain="zeros", blank="zeros", where=str(csv)
    )
    shared = labels.sum(1) != 1
    if shared.any():
        row = int(np.argmax(shared))
        present = [name for name, label in zip(CLASSES, labels[row], strict=True) if label]
        raise ValueError(
            f"{csv}: row {row + 1} ({paths[row]}) has {present or 'none'} of the five findings {list(CLASSES)}, "
            "expected exactly one in every row"
        )
    counts = labels.sum(0).astype(int).tolist()
    notes = [] if counts == [_PER_CLASS] * 5 else [f"differs from the published set: {counts} images, not 200 each"]
    base = csv.parent if image_root is None else Path(image_root)
    images = labelled_images(
        paths,
        [base / path for path in paths],
        labels,
        [_patient(path) for path in paths],
        modality="xray",
        texts=[None if is_blank(text) else text.strip() for text in table[_REPORT]],
        read=file_reader(force_dicom),
    )
    return assemble(
        "chexpert5x200",
        images,
        ["test"] * len(images),
        task="multi-class",
        classes=CLASSES,
        where=str(csv),
        prompts="chexpert5x200",
        on_bad_image=on_bad_image,
        notes=notes,
    )


def _find(root: Path) -> Path:
    if not root.is_dir():
        return root
    for name in _TABLES:
        if (root / name).is_file():
            return root / name
    raise ValueError(f"{root}: holds none of {', '.join(_TABLES)}")


def _patient(path: str) -> str:
    """Returns the patient's folder in a path of CheXpert; the path itself if there is none."""
    match = re.search(r"patient\d+", path)
    return match.group() if match else path
