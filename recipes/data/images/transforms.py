"""From a study's image to a normalised tensor; augmentation that depends on its seed alone."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from recipes.data.studies import Box
from recipes.shared.encoders.image import ImageEncoderSpec, normalisation


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


def augment(image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Shifts, rotates and scales an image a little, and changes its exposure. No flips: sides have a meaning.

    Args:
        image: Square.
        rng: The only source of chance.
    """
    size = image.shape[0]
    angle = rng.uniform(-0.09, 0.09)
    scale = rng.uniform(0.93, 1.07)
    shift = rng.uniform(-0.05, 0.05, size=2) * size
    cos, sin, centre = np.cos(angle) / scale, np.sin(angle) / scale, (size - 1) / 2
    x0 = centre - cos * (centre + shift[0]) + sin * (centre + shift[1])
    y0 = centre - sin * (centre + shift[0]) - cos * (centre + shift[1])
    warped = Image.fromarray(image).transform(
        (size, size), Image.Transform.AFFINE, (cos, -sin, x0, sin, cos, y0), Image.Resampling.BILINEAR
    )
    contrast, brightness = rng.uniform(0.9, 1.1), rng.uniform(-12, 12)
    return np.clip(np.asarray(warped, np.float32) * contrast + brightness, 0, 255).astype(np.uint8)


def to_tensor(image: NDArray[np.uint8], spec: ImageEncoderSpec) -> Tensor:
    """Turns ``(H, W)`` or ``(H, W, 3)``, 0..255, into a normalised ``(3, H, W)``; grey becomes three equal channels."""
    tensor = torch.from_numpy(np.ascontiguousarray(image)).float().div(255)
    tensor = tensor.expand(3, *tensor.shape) if tensor.ndim == 2 else tensor.permute(2, 0, 1)
    mean, std = normalisation(spec)
    return (tensor - mean) / std
