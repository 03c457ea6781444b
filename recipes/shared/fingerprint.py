"""Tells whether the data of a run are those that it was trained on: ``data.json``."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from recipes.data.pairs import PairStream
from recipes.data.pixel_checksum import pixel_checksum
from recipes.shared.runs import read_object, write_json

FILE = "data.json"
_WORDS = {"ids": "images", "groups": "groups", "labels": "labels", "texts": "texts", "pixels": "pixels", "tars": "tars"}


def write_fingerprint(run: Path, splits: Iterable[tuple[str, Any]]) -> None:
    """Writes the number of studies of each split, and checksums of their ids, groups, labels, texts and images.

    Args:
        run: Folder of the run.
        splits: Name and split; of a stream it keeps the checksum of its tars.
    """
    write_json(run / FILE, _fingerprint(splits))


def changes(run: Path, splits: Iterable[tuple[str, Any]]) -> list[str]:
    """Returns what has changed since the run was trained; nothing for a run of a version that kept no checksums.

    Args:
        run: Folder of the run.
        splits: Name and split, as they are read now.
    """
    if not (run / FILE).is_file():
        return []
    before = read_object(run / FILE)
    differences: list[str] = []
    for name, now in _fingerprint(splits).items():
        old = before.get(name, now)
        if old.get("studies") != now.get("studies"):
            differences.append(f"{name} has {now['studies']} studies, {old['studies']} when it was trained")
        else:
            # Runs of earlier versions have no checksum of pixels.
            differing = [word for key, word in _WORDS.items() if old.get(key, now.get(key)) != now.get(key)]
            differences += [f"the {', '.join(differing)} of {name} differ"] if differing else []
    return differences


def check_unchanged(run: Path, splits: Iterable[tuple[str, Any]], *, data: str) -> None:
    """Refuses data that were changed since the run was trained.

    Args:
        run: Folder of the run.
        splits: Name and split, as they are read now.
        data: What they were read from: a file or a name.

    Raises:
        ValueError: Naming the data and what differs.
    """
    differences = changes(run, splits)
    if differences:
        raise ValueError(
            f"{data} is not as it was when {run} was trained: {'; '.join(differences)}. Restore it, train another run, "
            f"or remove {run / FILE} to go on with the data as they are now."
        )


def _fingerprint(splits: Iterable[tuple[str, Any]]) -> dict[str, dict[str, Any]]:
    return {
        name: {"tars": split.checksum()}
        if isinstance(split, PairStream)
        else {
            "studies": len(split),
            "ids": _checksum(split.ids),
            "groups": _checksum(split.groups),
            "labels": hashlib.sha256(np.ascontiguousarray(split.labels, np.float32).tobytes()).hexdigest(),
            "texts": _checksum(split.texts),
            "pixels": pixel_checksum(split),
        }
        for name, split in splits
    }


def _checksum(cells: Iterable[str | None]) -> str:
    total = hashlib.sha256()
    for cell in cells:
        total.update(b"\0" if cell is None else b"\1" + cell.encode("utf-8", "surrogatepass") + b"\2")
    return total.hexdigest()
