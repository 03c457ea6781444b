"""Image files that a command names one by one or by their folder."""

from collections.abc import Iterable
from pathlib import Path

from recipes.data.images.dicom import is_dicom

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".dcm", ".dicom")
"""Endings of the files that are taken from a folder, besides DICOM files without one."""


def image_files(paths: Iterable[Path]) -> list[Path]:
    """Returns files as they are, and in place of each folder the images in it and below, in the order of their names.

    Hidden files and folders are passed over, and so is what has neither the ending of an image nor DICOM's preamble.

    Args:
        paths: Files and folders.

    Raises:
        ValueError: If one does not exist, or a folder holds no image; the message names it.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        if not path.exists():
            raise ValueError(f"image (--image): {str(path)!r} does not exist.")
        if not path.is_dir():
            files.append(path)
            continue
        inside = [file for file in sorted(path.rglob("*")) if _is_image(file, path)]
        if not inside:
            raise ValueError(f"image (--image): the folder {str(path)!r} holds no {', '.join(SUFFIXES)}.")
        files += inside
    return files


def _is_image(file: Path, folder: Path) -> bool:
    if any(part.startswith(".") for part in file.relative_to(folder).parts) or not file.is_file():
        return False
    return file.suffix.lower() in SUFFIXES or (not file.suffix and is_dicom(file))
