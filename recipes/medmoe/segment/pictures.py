"""A region as files: the mask, and the region's outline over the image."""

import re
from pathlib import Path

import numpy as np
from PIL import Image

from recipes.medmoe.segment.scoring import Region

_EDGE = (255, 210, 74)
_KNOWN = (0, 229, 255)


def write_region(folder: Path, number: int, region: Region, threshold: float) -> Path:
    """Writes ``NN-NAME-mask.png`` and ``NN-NAME.png``, the image with the outlines of the region and of the known one.

    Args:
        folder: Where to; it exists.
        number: Of the picture.
        region: What to draw.
        threshold: Where the map is cut.

    Returns:
        The picture with the outline.
    """
    name = re.sub(r"[^A-Za-z0-9]+", "-", Path(region.name).stem).strip("-")[:60] or "image"
    inside = region.map >= threshold
    Image.fromarray((inside * 255).astype(np.uint8)).save(folder / f"{number:02d}-{name}-mask.png")
    picture = np.array(Image.fromarray(region.picture).convert("RGB"))
    if region.known is not None:
        picture[_outline(region.known)] = _KNOWN
    picture[_outline(inside)] = _EDGE
    path = folder / f"{number:02d}-{name}.png"
    Image.fromarray(picture).save(path)
    return path


def _outline(inside: np.ndarray) -> np.ndarray:
    """Returns the pixels of a region that touch one outside it."""
    padded = np.pad(inside, 1)
    core = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return inside & ~core
