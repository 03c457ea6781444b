"""MRNet: knee MRI as it is distributed, volumes of slices in three planes and a label per exam."""

from pathlib import Path
from typing import Literal

import numpy as np

from recipes.data.arguments import argument
from recipes.data.evaluation.assemble import assemble, one_hot
from recipes.data.evaluation.labelled_images import labelled_images, read_slice
from recipes.data.evaluation.types import EvaluationSet
from recipes.data.image_files import OnBadImage
from recipes.data.tables.csv_file import read_rows_without_header
from recipes.data.tables.labels import check_choice

Plane = Literal["axial", "coronal", "sagittal"]


def has_mrnet(root: Path, finding: str) -> bool:
    """Tells whether a folder holds a table of MRNet for a finding."""
    return any((root / f"{part}-{finding}.csv").is_file() for part in ("train", "valid"))


def mrnet_set(
    root: Path,
    finding: str,
    classes: tuple[str, str],
    *,
    plane: Plane = "sagittal",
    position: float = 0.5,
    val_fraction: float = 0.1,
    seed: int = 0,
    on_bad_image: OnBadImage = "error",
) -> EvaluationSet:
    """Reads one slice per exam.

    Layout: ``{train,valid}/{axial,coronal,sagittal}/0000.npy`` of shape ``(slices, 256, 256)``, and
    ``{train,valid}-{abnormal,acl,meniscus}.csv`` *without a header*, of exam and 0 or 1. MRNet's own test exams
    are not public: ``valid`` becomes test, and val is drawn from train. Without ``train-<finding>.csv`` there is
    a test split alone.

    Args:
        root: The folder.
        finding: ``"acl"`` or ``"meniscus"``.
        classes: Names for 0 and 1.
        plane: Of the volumes.
        position: Which slice: 0 the first, 0.5 the middle one, 1 the last.
        val_fraction: Share of the training exams to validate on.
        seed: Of the draw of those.
        on_bad_image: What to do about volumes that cannot be read.

    Raises:
        ValueError: If a table is missing, has a header, lists an exam twice or a label that is not 0 or 1, or if
            a volume is missing.

    Reference:
        Bien et al., Deep-learning-assisted diagnosis for knee MRI, PLOS Medicine 2018.
    """
    check_choice("plane", plane, Plane)
    for name, value in (("position", position), ("val_fraction", val_fraction)):
        if not 0 <= value <= 1 or (name == "val_fraction" and value in (0, 1)):
            raise ValueError(f"{argument(name)} must lie between 0 and 1, got {value}")
    parts = {"valid": _read_labels(root / f"valid-{finding}.csv")}
    notes = [
        f"the study is the {plane} slice at {position:g} of the volume; the label is of the whole exam",
        "MRNet's test exams are not public: its validation exams are the test split",
    ]
    if (root / f"train-{finding}.csv").is_file():
        parts["train"] = _read_labels(root / f"train-{finding}.csv")
        notes.append(f"val is {val_fraction:g} of the training exams, drawn with seed {seed}")
    held_out = _draw(list(parts.get("train", ())), val_fraction, seed)
    rows = [(part, exam, label) for part, labels in parts.items() for exam, label in labels.items()]
    images = labelled_images(
        [f"{part}/{exam}" for part, exam, _ in rows],
        [root / part / plane / f"{exam}.npy" for part, exam, _ in rows],
        one_hot([label for _, _, label in rows], 2),
        [exam for _, exam, _ in rows],
        modality="mri",
        details=[position] * len(rows),
        read=read_slice,
    )
    splits = ["test" if part == "valid" else "val" if exam in held_out else "train" for part, exam, _ in rows]
    return assemble(
        finding,
        images,
        splits,
        task="binary-class",
        classes=classes,
        where=str(root),
        prompts=finding,
        on_bad_image=on_bad_image,
        notes=notes,
    )


def _draw(exams: list[str], fraction: float, seed: int) -> set[str]:
    """Draws a share of the exams, at least one of two."""
    if len(exams) < 2:
        return set()
    count = min(max(1, round(fraction * len(exams))), len(exams) - 1)
    chosen = np.random.default_rng(seed).permutation(len(exams))[:count]
    return {sorted(exams)[place] for place in chosen}


def _read_labels(csv: Path) -> dict[str, int]:
    """Reads a table of exam and label that has no header."""
    labels: dict[str, int] = {}
    for line, cells in read_rows_without_header(csv):
        if len(cells) != 2 or not cells[0].strip().isdecimal() or cells[1].strip() not in ("0", "1"):
            raise ValueError(f"{csv}: row {line} must be an exam's number and 0 or 1, without a header, got {cells}")
        # Spreadsheets strip the zeros of 0001.
        exam = cells[0].strip().zfill(4)
        if exam in labels:
            raise ValueError(f"{csv}: row {line} lists the exam {exam} a second time")
        labels[exam] = int(cells[1])
    if not labels:
        raise ValueError(f"{csv}: holds no rows")
    return labels
