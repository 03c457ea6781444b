"""Images that a browser uploaded: read once, within limits, and removed."""

import shutil
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from recipes.data.images.confined import read_confined
from recipes.data.images.read import ImageLimits


def take_upload(path: Path, size: int, *, force_dicom: bool, limits: ImageLimits) -> NDArray[np.uint8]:
    """Reads an uploaded image, fitted to a square, and removes its file in any case.

    Args:
        path: The file, in a folder of its own.
        size: Side of the square, in pixels.
        force_dicom: Whether DICOM files without preamble and file meta group are read.
        limits: What is refused before it is decoded.

    Raises:
        ValueError: If it cannot be read; the message names it without its folder.
    """
    try:
        return read_confined(path, size, force_dicom=force_dicom, limits=limits)
    except ValueError as error:
        named = str(error).replace(repr(str(path)), repr(path.name)).replace(str(path), path.name)
        raise ValueError(named) from None
    finally:
        path.unlink(missing_ok=True)


class UploadFolder:
    """The folder of uploads, which never holds more than a limit.

    Args:
        folder: It is made, and belongs to the server alone.
        max_bytes: Most that it may hold.
        max_age: Seconds after which a file that was not read is removed.
    """

    def __init__(self, folder: Path, *, max_bytes: int, max_age: float) -> None:
        self.folder, self.max_bytes, self.max_age = folder, max_bytes, max_age
        folder.mkdir(parents=True, exist_ok=True)

    def has_room(self, incoming: int) -> bool:
        """Removes old files, and tells whether as many more bytes fit.

        Args:
            incoming: Bytes that are about to be written.
        """
        held, oldest = 0, time.time() - self.max_age
        for path in sorted(self.folder.rglob("*"), reverse=True):
            try:
                about = path.lstat()
                if path.is_dir():
                    # Only an empty one goes; another request may be about to write into a new one.
                    if about.st_mtime < oldest:
                        path.rmdir()
                elif about.st_mtime < oldest:
                    path.unlink()
                else:
                    held += about.st_size
            except OSError:
                continue
        return held + incoming <= self.max_bytes

    def remove(self) -> None:
        """Removes the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)
