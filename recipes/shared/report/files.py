"""Reads what a run left in its folder; every error names the file at fault."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from recipes.shared.epochs import history_from_one

MISSING = "the file is missing. A report needs the whole folder of a finished run."


@contextmanager
def content_of(path: Path) -> Iterator[None]:
    """Turns errors over a file's content into one that names the file.

    Readers check a file's outer fields; what lies deeper is first touched where it is shown, inside this block.

    Args:
        path: The file whose content the block uses.

    Raises:
        ValueError: Naming the file, if the block meets a missing field or a value of another kind.
    """
    try:
        yield
    except KeyError as error:
        raise ValueError(f"{path}: the field {error} is missing. Run the stage that writes the file again.") from error
    except (TypeError, ValueError, AttributeError, IndexError) as error:
        raise ValueError(
            f"{path}: a value is not what a report expects ({error}). Run the stage that writes the file again."
        ) from error


def read_object(path: Path, keys: Sequence[str] = ()) -> dict[str, Any]:
    """Reads a JSON object.

    Args:
        path: The file.
        keys: Fields that it must have.

    Raises:
        ValueError: Naming the file, if it is missing, holds anything else or lacks a field.
    """
    value = _parse(path, _text(path))
    for key in keys:
        if key not in value:
            raise ValueError(f'{path}: the field "{key}" is missing.')
    return value


def check_section(path: Path, content: Mapping[str, Any], name: str, keys: Sequence[str]) -> None:
    """Checks a section of a JSON object.

    Args:
        path: The file that holds it.
        content: What `read_object` returned.
        name: The section's field.
        keys: Fields that the section must have.

    Raises:
        ValueError: Naming the file, if the section is no object or lacks a field.
    """
    section = content[name]
    if not isinstance(section, dict):
        raise ValueError(f'{path}: "{name}" must be an object, got {type(section).__name__}.')
    for key in keys:
        if key not in section:
            raise ValueError(f'{path}: "{name}" lacks the field "{key}".')


def read_history(path: Path, keys: Sequence[str]) -> list[dict[str, Any]]:
    """Reads one JSON object per line: the epochs of a training, numbered from 1 whatever version wrote them.

    Args:
        path: The file.
        keys: Fields that every line must have.

    Raises:
        ValueError: Naming the file, if it is missing, empty, holds anything else or a line lacks a field.
    """
    records = [_parse(path, line) for line in _text(path).splitlines() if line.strip()]
    if not records:
        raise ValueError(f"{path}: expected one line per epoch, got none.")
    for record in records:
        for key in keys:
            if key not in record:
                raise ValueError(f'{path}: a line lacks the field "{key}".')
    with content_of(path):
        return history_from_one(records)


def read_examples(path: Path, keys: Sequence[str], *, common: Sequence[str] = ()) -> dict[str, NDArray[Any]] | None:
    """Reads arrays of example studies, one row per study.

    Args:
        path: A file of ``numpy.savez``.
        keys: Arrays that it must have; ``"images"`` among them says how many studies there are.
        common: Arrays of what all studies share, which have other rows.

    Returns:
        The arrays, or ``None`` where there is no such file or it holds no study.

    Raises:
        ValueError: Naming the file, if it holds anything else, lacks an array or has arrays of other lengths.
    """
    if not path.is_file():
        return None
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
    except (OSError, ValueError, BadZipFile, AttributeError) as error:
        raise ValueError(f"{path}: expected arrays saved by numpy.savez ({error}).") from error
    missing = [key for key in keys if key not in arrays]
    if missing:
        raise ValueError(f"{path}: the arrays {missing} are missing.")
    if single := [key for key, array in arrays.items() if array.ndim == 0]:
        raise ValueError(f"{path}: expected one row per study in every array, got single values in {single}.")
    count = len(arrays["images"])
    for key, array in arrays.items():
        if key not in common and len(array) != count:
            raise ValueError(f"{path}: expected {count} studies in every array, got {len(array)} in {key!r}.")
    return arrays if count else None


def _text(path: Path) -> str:
    if not path.is_file():
        raise ValueError(f"{path}: {MISSING}")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected text in UTF-8 ({error}).") from error


def _parse(path: Path, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: expected JSON, got something else ({error}).") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(value).__name__}.")
    return value
