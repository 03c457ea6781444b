"""From a study's image to a normalised tensor; augmentation that depends on its seed alone."""

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from recipes.shared.encoders.image import ImageEncoderSpec, normalisation


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
