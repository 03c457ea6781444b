"""From an image of any size to the square and the numbers that a released model was trained on."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from recipes.data.images.transforms import to_tensor
from recipes.data.studies import Box
from recipes.shared.encoders.spec import ImageEncoderSpec

How = Literal["crop", "letterbox", "corner", "squash", "pad-then-resize"]
"""How an image becomes a square:

| ``crop`` | the shorter side to ``resize`` pixels, the centre cut out |
| ``letterbox`` | the longer side to ``resize`` pixels, black around, the centre cut out |
| ``corner`` | the longer side to ``resize`` pixels, black to the right and below |
| ``squash`` | both sides to ``size`` pixels |
| ``pad-then-resize`` | black around to a square of at least ``size`` pixels, then to ``size`` |
"""

_FILTERS = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "area": Image.Resampling.BOX,
}


class Placed(NamedTuple):
    """Where an image lies in its square: ``x * scale + offset``, by axis."""

    scale: tuple[float, float]
    offset: tuple[float, float]


@dataclass(frozen=True)
class Preprocess:
    """What a released model does to an image before its first layer.

    Attributes:
        size: Side of the square, in pixels.
        mean: Per channel, subtracted from values in [0, 1].
        std: Per channel, divides them then.
        how: See :data:`How`.
        resize: Pixels that a side is scaled to; ``size`` by default.
        interpolation: ``"bicubic"``, ``"bilinear"`` or ``"area"``.
        grey: Whether colours are dropped first.
        cut_down: Whether the corner of the centre cut out is rounded down, as transformers does; torchvision rounds to
            the nearest even pixel.
        stretch: Whether the image's own darkest and brightest values become 0 and 255 first.
    """

    size: int
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    how: How = "crop"
    resize: int | None = None
    interpolation: str = "bicubic"
    grey: bool = False
    cut_down: bool = False
    stretch: bool = False

    def fit(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Makes the square of an image.

        Args:
            image: ``(H, W)`` or ``(H, W, 3)``.

        Returns:
            ``(size, size)`` or ``(size, size, 3)``.
        """
        if self.stretch and image.max() > image.min():
            low, high = float(image.min()), float(image.max())
            image = ((image - low) / (high - low) * 255).astype(np.uint8)
        if self.grey and image.ndim == 3:
            image = np.asarray(Image.fromarray(image).convert("L"))
        height, width = image.shape[:2]
        if self.how == "pad-then-resize":
            side = max(self.size, height, width)
            padded = _place(image, side, (side - width) // 2, (side - height) // 2)
            return _resized(padded, (self.size, self.size), self.interpolation)
        new_width, new_height = self._scaled(height, width)
        left, top = self._corner(new_width, new_height)
        return _place(_resized(image, (new_width, new_height), self.interpolation), self.size, left, top)

    def placed(self, height: int, width: int) -> Placed:
        """Returns where an image of ``height`` by ``width`` pixels lies in the square."""
        if self.how == "pad-then-resize":
            side = max(self.size, height, width)
            scale = self.size / side
            return Placed((scale, scale), ((side - width) // 2 * scale, (side - height) // 2 * scale))
        new_width, new_height = self._scaled(height, width)
        left, top = self._corner(new_width, new_height)
        return Placed((new_width / width, new_height / height), (left, top))

    def boxes(self, boxes: tuple[Box, ...], shape: tuple[int, ...]) -> tuple[Box, ...]:
        """Moves boxes with their image; what is cut off the image is cut off its boxes.

        Args:
            boxes: In pixels of the image.
            shape: Of the image.

        Returns:
            In pixels of the square; boxes that lie outside it altogether have no area.
        """
        scale, offset = self.placed(*shape[:2])

        def moved(value: float, axis: int) -> float:
            return min(max(value * scale[axis] + offset[axis], 0.0), float(self.size))

        return tuple(
            Box(box.finding, moved(box.x0, 0), moved(box.y0, 1), moved(box.x1, 0), moved(box.y1, 1)) for box in boxes
        )

    def tensor(self, picture: NDArray[np.uint8]) -> Tensor:
        """Turns a square of :meth:`fit` into ``(3, size, size)``; grey becomes three equal channels."""
        return to_tensor(picture, ImageEncoderSpec("", self.size, self.mean, self.std))

    def batch(self, pictures: Sequence[NDArray[np.uint8]]) -> Tensor:
        """Stacks squares into ``(B, 3, size, size)``."""
        return torch.stack([self.tensor(picture) for picture in pictures])

    def _scaled(self, height: int, width: int) -> tuple[int, int]:
        """Returns width and height after scaling; the longer side is cut off, as torchvision does."""
        if self.how == "squash":
            return self.size, self.size
        side = self.resize or self.size
        if self.how == "crop":
            short = min(height, width)
            return (side, int(side * height / short)) if width <= height else (int(side * width / short), side)
        long = max(height, width)
        return max(1, int(width * side / long)), max(1, int(height * side / long))

    def _corner(self, width: int, height: int) -> tuple[int, int]:
        """Returns where the scaled image begins in the square; below 0 where it is cut."""
        if self.how == "corner":
            return 0, 0
        if self.how != "letterbox":
            whole = int if self.cut_down else round
            return -whole((width - self.size) / 2), -whole((height - self.size) / 2)
        side = self.resize or self.size
        cut = round((side - self.size) / 2)
        return (side - width) // 2 - cut, (side - height) // 2 - cut


def _resized(image: NDArray[np.uint8], size: tuple[int, int], interpolation: str) -> NDArray[np.uint8]:
    if image.shape[1::-1] == size:
        return image
    return np.asarray(Image.fromarray(image).resize(size, _FILTERS[interpolation]))


def _place(image: NDArray[np.uint8], side: int, left: int, top: int) -> NDArray[np.uint8]:
    """Puts an image into a black square of ``side`` pixels; what lies outside is cut off."""
    square = np.zeros((side, side, *image.shape[2:]), np.uint8)
    part = image[max(0, -top) : max(0, side - top), max(0, -left) : max(0, side - left)]
    square[max(0, top) : max(0, top) + part.shape[0], max(0, left) : max(0, left) + part.shape[1]] = part
    return square
