"""RSNA pneumonia: chest radiographs with boxes around opacities."""

import math
from pathlib import Path

from recipes.data.evaluation.assemble import FRACTIONS, Splits, assemble, one_hot, unofficial
from recipes.data.evaluation.labelled_images import labelled_images
from recipes.data.evaluation.types import EvaluationSet
from recipes.data.image_files import OnBadImage, file_reader
from recipes.data.studies import Box
from recipes.data.tables.columns import filled
from recipes.data.tables.csv_file import read_table
from recipes.data.tables.labels import is_blank

CLASSES = ("normal", "pneumonia")
_TABLE, _FOLDER = "stage_2_train_labels.csv", "stage_2_train_images"
_SIDES = ("x", "y", "width", "height")
_NOTES = (
    "the class normal is 'no box': other findings, such as masses, may be in it",
    "patientId names an exam; the files do not tell whether two exams are of one person",
)


def rsna_pneumonia(
    root: str | Path,
    *,
    splits: Splits = "draw",
    seed: int = 0,
    fractions: tuple[float, float, float] = FRACTIONS,
    on_bad_image: OnBadImage = "error",
    force_dicom: bool = False,
) -> EvaluationSet:
    """Reads the labelled part of the RSNA Pneumonia Detection Challenge (2018), stage 2.

    ``stage_2_train_labels.csv`` has a row per *box* (patientId, x, y, width, height, Target), so a patient with
    two boxes has two rows: they become one study with two boxes. The images are
    ``stage_2_train_images/<patientId>.dcm``. There is no official split of the labelled part.

    Args:
        root: The folder that holds the table and the folder of images.
        splits: Draw splits by patient, or take everything for test.
        seed: Of the drawn splits.
        fractions: Of the drawn splits.
        on_bad_image: What to do about files that cannot be read.
        force_dicom: Whether DICOM files without preamble and file meta group are read.

    Raises:
        ValueError: If the table, a column or an image is missing, or a row contradicts itself or another of the
            same patient; the message names the file and the row.
    """
    root = Path(root)
    csv = root / _TABLE
    boxes = _boxes_by_patient(csv)
    patients = list(boxes)
    images = labelled_images(
        patients,
        [root / _FOLDER / f"{patient}.dcm" for patient in patients],
        one_hot([int(bool(boxes[patient])) for patient in patients], 2),
        patients,
        modality="xray",
        details=[boxes[patient] for patient in patients],
        read=file_reader(force_dicom),
    )
    return assemble(
        "rsna",
        images,
        unofficial(splits, len(images), seed, fractions),
        task="binary-class",
        classes=CLASSES,
        where=str(csv),
        prompts="rsna",
        on_bad_image=on_bad_image,
        notes=_NOTES,
    )


def _boxes_by_patient(csv: Path) -> dict[str, tuple[Box, ...]]:
    """Reads all rows: the boxes of each patient, none for those without pneumonia."""
    table = read_table(csv, ["patientId", *_SIDES, "Target"])
    patients = filled(table["patientId"], "patientId", str(csv))
    boxes: dict[str, tuple[Box, ...]] = {}
    for row, (patient, target) in enumerate(zip(patients, table["Target"], strict=True)):
        where = f"{csv}: row {row + 1} ({patient})"
        sides = [table[side][row] for side in _SIDES]
        if target.strip() not in ("0", "1"):
            raise ValueError(f"{where}: column 'Target' must be 0 or 1, got {target!r}")
        known = boxes.get(patient)
        if target.strip() == "0":
            if not all(is_blank(side) for side in sides):
                raise ValueError(f"{where}: Target is 0, but there is a box {sides}")
            if known is not None:
                raise ValueError(f"{where}: Target is 0, but an earlier row lists the patient too")
            boxes[patient] = ()
        elif known == ():
            raise ValueError(f"{where}: Target is 1, but an earlier row of the patient has 0")
        else:
            boxes[patient] = (*(known or ()), _box(sides, where))
    return boxes


def _box(sides: list[str], where: str) -> Box:
    """Reads x, y, width and height of a box."""
    try:
        x, y, width, height = (float(side) for side in sides)
    except ValueError:
        raise ValueError(f"{where}: a box needs four numbers {list(_SIDES)}, got {sides}") from None
    if not (all(map(math.isfinite, (x, y))) and 0 < width < math.inf and 0 < height < math.inf):
        raise ValueError(f"{where}: a box needs a width and a height above 0, got {sides}")
    return Box("pneumonia", x, y, x + width, y + height)
