"""Studies whose images are files: all but the pixels is known at once, and an image is read when it is asked for."""

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from recipes.data.images.read import read_image
from recipes.data.images.volumes import is_volume_path, read_volume
from recipes.data.studies import Box, Study

OnBadImage = Literal["error", "skip"]
"""``"error"``: missing and empty files are refused at once, damaged ones when they are read. ``"skip"``: every
image is read now, and those that cannot be are left out and counted in the notes."""

Reader = Callable[[str, Any], tuple[NDArray[np.uint8], tuple[Box, ...]]]
"""From a path and a detail of its own to an image and its boxes; raises ``ValueError`` that names the file."""

_CHUNK = 64
"""Images that a thread checks at a time."""


def read_file(
    path: str, boxes: tuple[Box, ...], *, force_dicom: bool = False
) -> tuple[NDArray[np.uint8], tuple[Box, ...]]:
    """Reads one image file, or a volume, whose boxes are known already."""
    if is_volume_path(path):
        return read_volume(path, force_dicom=force_dicom), boxes
    return read_image(path, force_dicom=force_dicom), boxes


def file_reader(force_dicom: bool) -> Reader:
    """Returns what reads image files, with or without DICOM files that lack their header."""
    return partial(read_file, force_dicom=True) if force_dicom else read_file


@dataclass(frozen=True, eq=False)
class ImageFiles:
    """A sequence of ``N`` studies whose images are read when a study is asked for.

    Attributes:
        ids: Unique names.
        paths: File of each image; blank for a study that has none.
        details: What ``read`` needs besides the path, one for each image.
        labels: ``float32`` of shape ``(N, C)``, NaN where unknown.
        groups: Patient of each image.
        texts: Text of each image, ``None`` where there is none.
        modalities: Kind of each image, ``None`` where it is not known.
        read: Reads one image; can be pickled, so that workers can read.
        attributes: What else is known of each image, such as sex, age and view: name to one value per image, blank
            where it is not known.
    """

    ids: tuple[str, ...]
    paths: tuple[str, ...]
    details: tuple[Any, ...]
    labels: NDArray[np.float32]
    groups: tuple[str, ...]
    texts: tuple[str | None, ...]
    modalities: tuple[str | None, ...]
    read: Reader = read_file
    attributes: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def has_image(self) -> NDArray[np.bool_]:
        """``(N,)``, which studies have an image."""
        return np.fromiter(map(bool, self.paths), np.bool_, len(self.paths))

    def __getitem__(self, index: int) -> Study:
        """Reads one study.

        Raises:
            ValueError: If the image cannot be read; the message names it.
        """
        image, boxes = self.read(self.paths[index], self.details[index]) if self.paths[index] else (None, ())
        return Study(
            id=self.ids[index],
            group=self.groups[index],
            image=image,
            text=self.texts[index],
            labels=self.labels[index].copy(),
            boxes=boxes,
            modality=self.modalities[index],
        )

    def take(self, rows: Sequence[int]) -> "ImageFiles":
        """Returns the studies of some rows, in their order."""
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        picked = {
            name: tuple(value[row] for row in rows) if isinstance(value, tuple) else value
            for name, value in values.items()
        }
        attributes = {name: tuple(cells[row] for row in rows) for name, cells in self.attributes.items()}
        return ImageFiles(**picked | {"labels": self.labels[list(rows)], "attributes": attributes})


def problems(count: int, problem_of: Callable[[int], str | None]) -> dict[int, str]:
    """Checks images on several threads.

    Args:
        count: Number of images.
        problem_of: From the number of an image to what is wrong with it, ``None`` if nothing is.

    Returns:
        What is wrong, by number, in ascending order.
    """

    def check(start: int) -> dict[int, str]:
        rows = range(start, min(start + _CHUNK, count))
        return {row: problem for row in rows if (problem := problem_of(row)) is not None}

    with ThreadPoolExecutor() as pool:
        parts = list(pool.map(check, range(0, count, _CHUNK)))
    return {row: problem for part in parts for row, problem in part.items()}


def missing_or_empty(path: str) -> str | None:
    """Says whether a file is missing or empty, ``None`` if it is neither."""
    try:
        return None if os.stat(path).st_size else "empty"
    # ValueError: a name no file can have, such as one with a NUL byte.
    except (OSError, ValueError):
        return "missing"


def check_files_exist(paths: Sequence[str], names: Sequence[str], where: str, *, place: str = "", how: str) -> None:
    """Refuses images whose files are missing or empty.

    Args:
        paths: The files; blank for a study without one.
        names: What to call each in the message.
        where: Table or folder that lists them.
        place: Where they were looked for, if ``names`` do not tell.
        how: What to do about them.

    Raises:
        ValueError: Naming up to five of them.
    """
    bad = list(problems(len(paths), lambda row: missing_or_empty(paths[row]) if paths[row] else None))
    if bad:
        raise ValueError(
            f"{where}: {len(bad)} of {len(paths)} images are missing or empty{place}: {some_of(names, bad)}. {how}"
        )


def some_of(names: Sequence[str], rows: Sequence[int]) -> str:
    """Lists up to five of the rows' names."""
    shown = ", ".join(names[row] for row in rows[:5])
    return shown if len(rows) <= 5 else f"{shown}, ..."
