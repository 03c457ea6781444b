"""DDTI: ultrasound of thyroid nodules as it is distributed, one XML file per case beside its images."""

import json
import re
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from recipes.data.evaluation.assemble import FRACTIONS, Splits, assemble, one_hot, unofficial
from recipes.data.evaluation.columns import class_of
from recipes.data.evaluation.labelled_images import labelled_images
from recipes.data.evaluation.types import EvaluationSet
from recipes.data.image_files import OnBadImage
from recipes.data.studies import Box

TIRADS = {"2": 0, "3": 0, "4a": 1, "4b": 1, "4c": 1, "5": 1}
"""From a TI-RADS category to benign (0) or malignant (1): 2 and 3 are benign, 4a and above malignant."""

_IMAGE = re.compile(r"(\d+)_(\d+)\.jpg", re.IGNORECASE)


class _Case(NamedTuple):
    """The content of an XML file.

    Attributes:
        tirads: The category, empty where the file gives none.
        boxes: Boxes of the nodules, by number of the image.
        unread: How many outlines could not be read.
    """

    tirads: str
    boxes: dict[str, tuple[Box, ...]]
    unread: int


def ddti_set(
    root: Path,
    *,
    splits: Splits = "draw",
    seed: int = 0,
    fractions: tuple[float, float, float] = FRACTIONS,
    on_bad_image: OnBadImage = "error",
) -> EvaluationSet:
    """Reads ``N.xml`` and ``N_1.jpg``, ``N_2.jpg``, ...: all images of a case have its label and are one group.

    Cases without a TI-RADS category are left out and counted in the notes. Each outline (``mark/svg``, json) gives
    a box; one that cannot be read gives none and is counted.

    Args:
        root: The folder.
        splits: Draw by case, or take everything for test.
        seed: Of the drawn splits.
        fractions: Of the drawn splits.
        on_bad_image: What to do about images that cannot be read.

    Raises:
        ValueError: If an XML file cannot be read or has a category that is none of `TIRADS`, a case has no image,
            an image has no XML file, or no case has a category.

    Reference:
        Pedraza et al., An open access thyroid ultrasound image database, SIPAIM 2014. Its labels are the
        categories; reading 4a and above as malignant is what the tables made from it do.
    """
    files = {path.stem: path for path in root.glob("*.xml")}
    cases = {stem: _read_case(path) for stem, path in sorted(files.items(), key=lambda item: _order(item[0]))}
    shots = _images_by_case(root, files)
    ids: list[str] = []
    labels: list[int] = []
    boxes: list[tuple[Box, ...]] = []
    groups: list[str] = []
    for stem, case in cases.items():
        if not case.tirads:
            continue
        label = class_of(case.tirads, TIRADS, f"{files[stem]}: tirads")
        if stem not in shots:
            raise ValueError(f"{files[stem]}: has no image {stem}_1.jpg beside it")
        for number in shots[stem]:
            ids.append(f"{stem}_{number}.jpg")
            labels.append(label)
            boxes.append(case.boxes.get(number, ()))
            groups.append(stem)
    if not ids:
        raise ValueError(f"{root}: none of its {len(cases)} cases has a TI-RADS category")
    on_disk = {path.name.lower(): path for path in root.iterdir()}
    images = labelled_images(
        ids, [on_disk[name] for name in ids], one_hot(labels, 2), groups, modality="ultrasound", details=boxes
    )
    return assemble(
        "thyroid",
        images,
        unofficial(splits, len(images), seed, fractions),
        task="binary-class",
        classes=("benign", "malignant"),
        where=str(root),
        prompts="thyroid",
        on_bad_image=on_bad_image,
        notes=_notes(cases),
    )


def _notes(cases: dict[str, _Case]) -> list[str]:
    notes = ["DDTI: TI-RADS 2 and 3 are taken for benign, 4a to 5 for malignant; there is no histology"]
    without = sum(not case.tirads for case in cases.values())
    if without:
        notes.append(f"left out {without} of {len(cases)} cases without a TI-RADS category")
    unread = sum(case.unread for case in cases.values())
    if unread:
        notes.append(f"{unread} outlines of nodules could not be read and give no box")
    return notes


def _order(stem: str) -> tuple[int, str]:
    return (int(stem) if stem.isdecimal() else 0, stem)


def _images_by_case(root: Path, files: dict[str, Path]) -> dict[str, list[str]]:
    """Finds the numbers of the images of each case.

    Raises:
        ValueError: If an image has no XML file.
    """
    numbers_of: dict[str, list[str]] = {}
    for path in sorted(root.iterdir()):
        match = _IMAGE.fullmatch(path.name)
        if match is None:
            continue
        if match[1] not in files:
            raise ValueError(f"{path}: has no {match[1]}.xml beside it, which would hold its label")
        numbers_of.setdefault(match[1], []).append(match[2])
    return {stem: sorted(numbers, key=int) for stem, numbers in numbers_of.items()}


def _read_case(path: Path) -> _Case:
    try:
        tree = ElementTree.parse(path).getroot()
    except (ElementTree.ParseError, OSError) as error:
        raise ValueError(f"cannot read the XML file {str(path)!r}: {error}") from error
    boxes: dict[str, tuple[Box, ...]] = {}
    unread = 0
    for mark in tree.iter("mark"):
        number = (mark.findtext("image") or "").strip()
        outline = (mark.findtext("svg") or "").strip()
        if not outline:
            continue
        try:
            boxes[number] = boxes.get(number, ()) + _boxes(outline)
        except (ValueError, KeyError, TypeError):
            unread += 1
    return _Case((tree.findtext("tirads") or "").strip(), boxes, unread)


def _boxes(outline: str) -> tuple[Box, ...]:
    """Returns the boxes around polygons: ``[{"points": [{"x": 1, "y": 2}, ...]}, ...]``."""
    boxes = []
    for polygon in json.loads(outline):
        xs = [float(point["x"]) for point in polygon["points"]]
        ys = [float(point["y"]) for point in polygon["points"]]
        boxes.append(Box("thyroid nodule", min(xs), min(ys), max(xs) + 1, max(ys) + 1))
    return tuple(boxes)
