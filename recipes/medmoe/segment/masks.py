"""Masks that lie beside images or in a folder of their own, as files."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from recipes.data.images.read import read_image
from recipes.data.images.square import fit_square

_MASK = re.compile(r"_mask(_\d+)?$")
HALF = 127
"""A pixel of a fitted mask is inside above this."""


def without_masks(files: Sequence[Path]) -> list[Path]:
    """Leaves out files called as masks are: ``NAME_mask.png``, ``NAME_mask_1.png``."""
    return [file for file in files if not _MASK.search(file.stem)]


def masks_of(image: Path, folder: Path) -> list[Path]:
    """Returns the masks of an image: ``NAME_mask.*`` and ``NAME_mask_1.*`` in a folder, else a file of its own name.

    Args:
        image: The image.
        folder: Where the masks are; the images' own folder works, and then only the first form counts.

    Raises:
        ValueError: If there is no folder.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder of masks (--masks).")
    named = [
        file for file in sorted(folder.iterdir()) if _MASK.sub("", file.stem) == image.stem and _MASK.search(file.stem)
    ]
    if named or folder.resolve() == image.parent.resolve():
        return named
    return [file for file in sorted(folder.iterdir()) if file.stem == image.stem and file.is_file()]


def mask_region(files: Sequence[Path], shape: Sequence[int], size: int) -> NDArray[np.bool_]:
    """Returns the union of masks, fitted to the square picture as their image is.

    Args:
        files: The masks; a pixel above 0 is inside.
        shape: Height and width of the image.
        size: S.

    Returns:
        ``(S, S)``.

    Raises:
        ValueError: If a mask cannot be read or has another size than the image.
    """
    inside = np.zeros(tuple(shape[:2]), bool)
    for file in files:
        mask = read_image(file)
        if mask.shape[:2] != inside.shape:
            raise ValueError(
                f"the mask {str(file)!r} is {mask.shape[:2]} pixels (height, width), its image {inside.shape}."
            )
        inside |= (mask if mask.ndim == 2 else mask.max(-1)) > 0
    return fit_square((inside * 255).astype(np.uint8), size) > HALF
