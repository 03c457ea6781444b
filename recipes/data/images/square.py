"""Images, and the boxes in them, fitted to the square that an encoder reads."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from recipes.data.studies import Box


def fit_square(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Scales to fit a square of side ``size``, aspect kept, black around.

    Args:
        image: ``(H, W)`` or ``(H, W, 3)``.
        size: In pixels.

    Returns:
        ``(size, size)`` or ``(size, size, 3)``.
    """
    height, width = image.shape[:2]
    if (height, width) == (size, size):
        return image
    scale = size / max(height, width)
    inner = (max(1, round(width * scale)), max(1, round(height * scale)))
    resized = np.asarray(Image.fromarray(image).resize(inner, Image.Resampling.BILINEAR))
    out = np.zeros((size, size, *image.shape[2:]), np.uint8)
    top, left = (size - inner[1]) // 2, (size - inner[0]) // 2
    out[top : top + inner[1], left : left + inner[0]] = resized
    return out


def fit_boxes(boxes: Sequence[Box], shape: Sequence[int], size: int) -> tuple[Box, ...]:
    """Moves boxes with their image into the square of :func:`fit_square`.

    Args:
        boxes: In pixels of the image.
        shape: Height and width of the image; more is not read.
        size: Side of the square, in pixels.

    Returns:
        In pixels of the square.
    """
    height, width = shape[:2]
    scale = size / max(height, width)
    left, top = (size - width * scale) / 2, (size - height * scale) / 2
    return tuple(
        Box(box.finding, box.x0 * scale + left, box.y0 * scale + top, box.x1 * scale + left, box.y1 * scale + top)
        for box in boxes
    )


def stack_images(images: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Stacks images of one size; grey ones become RGB where another is in colour.

    Args:
        images: Each ``(H, W)`` or ``(H, W, 3)``.

    Returns:
        ``(N, H, W)`` or ``(N, H, W, 3)``.
    """
    if any(image.ndim == 3 for image in images):
        return np.stack([np.repeat(image[..., None], 3, axis=-1) if image.ndim == 2 else image for image in images])
    return np.stack(images)
