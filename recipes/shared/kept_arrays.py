"""Arrays that a run keeps for later calls, with what they were computed from."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_KEY = "key"


def read_kept(path: Path, key: str) -> dict[str, NDArray[Any]] | None:
    """Reads arrays that are kept.

    Args:
        path: The file.
        key: What they must have been computed from.

    Returns:
        The arrays by name; ``None`` if there is no file, or it is of another key.
    """
    if not path.is_file():
        return None
    with np.load(path) as file:
        return {name: file[name] for name in file.files if name != _KEY} if str(file[_KEY]) == key else None


def keep(path: Path, key: str, arrays: Mapping[str, Any]) -> None:
    """Writes arrays in one step, so that readers have the old file or the new one.

    Args:
        path: The file, a ``.npz``; its folder is made.
        key: What they were computed from.
        arrays: By name.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Cells of a sweep may write the same file side by side.
    part = path.with_suffix(f".{os.getpid()}.part.npz")
    np.savez_compressed(part, **{_KEY: np.array(key)}, **arrays)
    part.replace(path)
