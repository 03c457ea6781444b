"""Finds the tables, lists and images of a set below its folder."""

import os
from collections.abc import Sequence
from pathlib import Path

from recipes.data.image_files import missing_or_empty, problems

_ENDINGS = (".jpg", ".png", ".dcm", ".tif", ".tiff", ".jpeg")


def check_folder(root: Path, name: str) -> None:
    """Refuses what is no folder.

    Raises:
        ValueError: Naming the set and the folder.
    """
    if not root.is_dir():
        raise ValueError(f"{name}: {str(root)!r} is no folder. Give the set's folder as {name}:FOLDER (--data).")


def table_of(root: Path, names: Sequence[str]) -> Path:
    """Finds a table by any of its names, compressed or not.

    Raises:
        ValueError: If the folder holds none of them.
    """
    for name in names:
        for path in (root / name, root / f"{name}.gz"):
            if path.is_file():
                return path
    raise ValueError(f"{root}: holds none of {', '.join(names)} (or the same with .gz): get the set's table anew")


def read_names(path: Path) -> list[str]:
    """Reads a file of one name a line.

    Raises:
        ValueError: If the file is no text in UTF-8 or names something twice; the message names it.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is no text in UTF-8 ({error}): get it anew") from error
    names = [line for line in lines if line]
    if not names:
        raise ValueError(f"{path}: is empty, expected a name of an image on every line")
    if len(set(names)) < len(names):
        repeated = next(name for row, name in enumerate(names) if name in names[:row])
        raise ValueError(f"{path}: lists {repeated!r} twice, expected every image once")
    return names


def existing_paths(paths: Sequence[str]) -> list[str]:
    """Returns the paths; of a file that does not exist, one beside it of the same name and another ending."""
    missing = problems(len(paths), lambda row: missing_or_empty(paths[row]))
    chosen = list(paths)
    for row in missing:
        stem = os.path.splitext(paths[row])[0]
        others = (stem + ending for ending in _ENDINGS)
        chosen[row] = next((other for other in others if missing_or_empty(other) is None), paths[row])
    return chosen
