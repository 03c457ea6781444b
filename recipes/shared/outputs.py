"""Checks that results can be written before any time is spent on them."""

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path


def check_folder(folder: Path, option: str) -> None:
    """Makes a folder and checks that files can be written into it.

    Args:
        folder: The folder.
        option: What to change otherwise: an option of the command line.

    Raises:
        ValueError: If it cannot be made or written to; the message names it and the option.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".write-test-"):
            pass
    except OSError as error:
        raise ValueError(f"{folder} cannot be written to ({_reason(error)}): give another {option}.") from error


def check_file(path: Path, option: str) -> None:
    """Makes the folder of a file and checks that the file can be written.

    Args:
        path: The file.
        option: What to change otherwise: an option of the command line.

    Raises:
        ValueError: If the file is a folder or cannot be written; the message names it and the option.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder, expected the name of a file to write: give another {option}.")
    check_folder(path.parent, option)
    if path.exists() and not os.access(path, os.W_OK):
        raise ValueError(f"{path} exists and cannot be written to: give another {option}.")


def check_outputs(run: Path, names: Iterable[str]) -> None:
    """Checks that a stage can write its files into a run.

    Args:
        run: Folder of the run; it must exist.
        names: The files, or folders for several.

    Raises:
        ValueError: If one cannot be written; the message names it.
    """
    if not run.is_dir():
        raise ValueError(f"{run} does not exist: is it the folder of a finished run?")
    check_folder(run, "copy of the run that can be written to")
    for name in names:
        path = run / name
        if path.exists() and not os.access(path, os.W_OK):
            raise ValueError(f"{path} exists and cannot be written to: allow it, or work on a copy of the run.")
        if path.suffix and path.is_dir():
            raise ValueError(f"{path} is a folder, but the stage writes a file of this name: move it away.")


def _reason(error: OSError) -> str:
    return error.strerror or type(error).__name__
