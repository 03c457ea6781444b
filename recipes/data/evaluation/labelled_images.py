"""Labelled images on disk of one modality, and the ways to read their pixels and boxes."""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recipes.data.image_files import ImageFiles, Reader, read_file
from recipes.data.images.intensity import stretch_min_max
from recipes.data.images.read import read_image
from recipes.data.studies import Box
from recipes.shared.extras import require

_HDF5_LOCK = threading.Lock()


def read_with_masks(path: str, masks: tuple[str, tuple[str, ...]]) -> tuple[NDArray[np.uint8], tuple[Box, ...]]:
    """Reads one image file and takes the box of every mask: the smallest that holds its pixels above zero.

    Args:
        path: The image.
        masks: Name of what the masks show, and their paths. An empty mask gives no box.

    Raises:
        ValueError: If a file cannot be read, or a mask has another size than the image.
    """
    image, boxes = read_image(path), []
    finding, files = masks
    for file in files:
        inside = read_image(file)
        if inside.shape[:2] != image.shape[:2]:
            raise ValueError(
                f"the mask {file!r} is {inside.shape[:2]} pixels (height, width), its image {image.shape[:2]}"
            )
        rows, columns = np.nonzero(inside if inside.ndim == 2 else inside.max(-1))
        if len(rows):
            x0, y0, x1, y1 = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
            boxes.append(Box(finding, float(x0), float(y0), float(x1), float(y1)))
    return image, tuple(boxes)


def read_slice(path: str, position: float) -> tuple[NDArray[np.uint8], tuple[Box, ...]]:
    """Reads one slice of a volume saved by numpy.

    Args:
        path: An ``.npy`` of shape ``(slices, H, W)``.
        position: Which slice: 0 the first, 0.5 the middle one (the upper of two), 1 the last.

    Returns:
        The slice, 8-bit values kept and all others stretched over the slice's own range, and no boxes.

    Raises:
        ValueError: If the file is no such volume.
    """
    try:
        volume = np.load(path, mmap_mode="r", allow_pickle=False)
    # Damaged bytes: a header that is none, a file shorter than its header says.
    except (ValueError, OSError, EOFError, SyntaxError) as error:
        raise ValueError(f"cannot read the volume {path!r}: {error}") from error
    if not isinstance(volume, np.ndarray) or volume.ndim != 3 or 0 in volume.shape:
        raise ValueError(
            f"the volume {path!r} must have shape (slices, H, W), none of them 0, "
            f"got {getattr(volume, 'shape', type(volume).__name__)}"
        )
    chosen = np.array(volume[min(int(position * len(volume)), len(volume) - 1)])
    return (chosen if chosen.dtype == np.uint8 else stretch_min_max(chosen)), ()


def read_hdf5(path: str, index: int) -> tuple[NDArray[np.uint8], tuple[Box, ...]]:
    """Reads one image out of the array ``images`` of an HDF5 file.

    Raises:
        ValueError: If the file or the image cannot be read.
        ImportError: If h5py is not installed.
    """
    h5py = require("h5py", "reading an HDF5 file")
    # The file is opened for every image so that a split can travel to worker processes.
    try:
        with _HDF5_LOCK, h5py.File(path, "r") as file:
            image = np.asarray(file["images"][index])
    except (OSError, KeyError, ValueError, IndexError) as error:
        raise ValueError(f"cannot read image {index} of {path!r}: {error}") from error
    return (image if image.dtype == np.uint8 else stretch_min_max(image)), ()


def labelled_images(
    ids: Sequence[str],
    paths: Sequence[str | Path],
    labels: NDArray[np.float32],
    groups: Sequence[str],
    *,
    modality: str | None,
    details: Sequence[Any] | None = None,
    texts: Sequence[str | None] | None = None,
    read: Reader = read_file,
) -> ImageFiles:
    """Makes `ImageFiles` of one modality; by default without boxes and texts."""
    count = len(ids)
    return ImageFiles(
        ids=tuple(ids),
        paths=tuple(map(str, paths)),
        details=((),) * count if details is None else tuple(details),
        labels=labels,
        groups=tuple(groups),
        texts=(None,) * count if texts is None else tuple(texts),
        modalities=(modality,) * count,
        read=read,
    )
