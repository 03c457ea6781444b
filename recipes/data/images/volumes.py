"""Volumes: slices of one study, as a folder of images, a multi-frame DICOM file or an array of numpy.

A volume is ``uint8`` of shape ``(D, H, W, C)`` with ``C`` 1 or 3; an image has two or three dimensions.
"""

import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from recipes.data.image_folders import SUFFIXES
from recipes.data.images.dicom import is_dicom, number_of_frames, read_dicom_volume
from recipes.data.images.intensity import stretch_min_max
from recipes.data.images.read import read_image
from recipes.data.images.square import fit_square
from recipes.data.images.unreadable import UnreadableImageError


def is_volume_path(path: str | Path) -> bool:
    """Tells whether a path is that of a volume: a folder, an array ``.npy``, or a DICOM file of several frames."""
    path = Path(path)
    if path.is_dir() or path.suffix.lower() == ".npy":
        return True
    return path.is_file() and is_dicom(path) and number_of_frames(path) > 1


def read_volume(path: str | Path, *, force_dicom: bool = False) -> NDArray[np.uint8]:
    """Reads a volume.

    The slices of a folder are its images in the order of their names, numbers in these by their value; files without
    the ending of an image are passed over. Arrays of other dtypes than ``uint8`` are stretched from their smallest to
    their largest value, the whole volume alike.

    Args:
        path: As :func:`is_volume_path` knows it.
        force_dicom: As in `recipes.data.images.read.read_image`.

    Returns:
        ``(D, H, W, C)``.

    Raises:
        ValueError: If there is no slice, slices differ in shape, an array has another shape, or something cannot be
            read; the message names it.
    """
    path = Path(path)
    if path.is_dir():
        return _read_folder(path, force_dicom)
    if path.suffix.lower() == ".npy":
        return _read_array(path)
    try:
        return read_dicom_volume(path, force=force_dicom)
    except ValueError as error:
        raise UnreadableImageError(f"cannot read the volume {str(path)!r}: {error}") from error


def volume_problem(path: str | Path, *, force_dicom: bool = False) -> str | None:
    """Returns what is wrong with a volume, ``None`` if it can be read."""
    try:
        read_volume(path, force_dicom=force_dicom)
    except ValueError as error:
        return str(error)
    return None


def fit_volume(image: NDArray[np.uint8], size: int, slices: int) -> NDArray[np.uint8]:
    """Takes at most ``slices`` evenly spaced slices, each fitted to a square of side ``size``.

    Args:
        image: A volume, or an image, which is a volume of one slice.
        size: In pixels.
        slices: Most slices.

    Returns:
        ``(n, size, size, C)``, with the first and the last slice where there are several.
    """
    volume = image if image.ndim == 4 else image[None, ..., None] if image.ndim == 2 else image[None]
    count = min(slices, len(volume))
    places = np.linspace(0, len(volume) - 1, count).round().astype(int) if count > 1 else [len(volume) // 2]
    fitted = np.stack([fit_square(slice_of(volume, place), size) for place in places])
    return fitted if fitted.ndim == 4 else fitted[..., None]


def slice_of(volume: NDArray[np.uint8], place: int) -> NDArray[np.uint8]:
    """Returns one slice as an image, ``(H, W)`` or ``(H, W, 3)``."""
    return volume[place, ..., 0] if volume.shape[-1] == 1 else volume[place]


def shown_image(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Returns an image as it is, and of a volume the middle slice."""
    return slice_of(image, len(image) // 2) if image.ndim == 4 else image


def _read_folder(folder: Path, force_dicom: bool) -> NDArray[np.uint8]:
    files = sorted((file for file in folder.iterdir() if _is_slice(file)), key=_natural)
    if not files:
        raise ValueError(f"the folder {str(folder)!r} holds no slice of a volume: none of {', '.join(SUFFIXES)}")
    slices = [read_image(file, force_dicom=force_dicom) for file in files]
    shapes = {one.shape for one in slices}
    if len(shapes) > 1:
        raise ValueError(f"the slices in {str(folder)!r} must be of one shape, got {sorted(shapes)}")
    volume = np.stack(slices)
    return volume if volume.ndim == 4 else volume[..., None]


def _is_slice(file: Path) -> bool:
    if file.name.startswith(".") or not file.is_file():
        return False
    return file.suffix.lower() in SUFFIXES or (not file.suffix and is_dicom(file))


def _natural(file: Path) -> list[tuple[int, str]]:
    """Orders ``slice-2`` before ``slice-10``."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", file.name)]


def _read_array(path: Path) -> NDArray[np.uint8]:
    try:
        array = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise UnreadableImageError(f"cannot read the volume {str(path)!r}: {error}") from error
    if array.ndim == 3:
        array = array[..., None]
    if array.ndim != 4 or array.shape[-1] not in (1, 3) or 0 in array.shape:
        raise ValueError(
            f"the volume {str(path)!r} must be of shape (D, H, W) or (D, H, W, 3), got {tuple(np.squeeze(array).shape)}"
        )
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind not in "iuf":
        raise ValueError(f"the volume {str(path)!r} must hold numbers, got {array.dtype}")
    return stretch_min_max(array)
