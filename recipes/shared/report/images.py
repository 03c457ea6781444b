"""Images inside a page: encoded in it, with colour maps over them and boxes around findings."""

from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image

LONGEST_SIDE = 448
"""Larger images are scaled down to this many pixels before they enter a page."""
OVERLAY_SIDE = 192
MOST_NAMES = 2
"""Boxes that carry the names of their findings; more of them would hide the image, and carry numbers instead."""


def data_uri(pixels: NDArray[np.uint8]) -> str:
    """Encodes an image as PNG inside a ``data:`` address.

    Args:
        pixels: ``uint8`` of shape ``(H, W)``, ``(H, W, 3)`` or ``(H, W, 4)``.

    Raises:
        ValueError: If the dtype or the shape is another.
    """
    if pixels.dtype != np.uint8 or not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (3, 4))):
        raise ValueError(
            f"pixels must be uint8 of shape (H, W), (H, W, 3) or (H, W, 4), got {pixels.dtype} of shape {pixels.shape}."
        )
    image = Image.fromarray(pixels)
    scale = LONGEST_SIDE / max(image.size)
    if scale < 1:
        image = image.resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.LANCZOS)
    buffer = BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + b64encode(buffer.getvalue()).decode("ascii")


def attention_overlay(attention: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Colours a patch attention map, transparent where it is low.

    The map is stretched from its lowest to its highest patch, so colours compare patches of one image,
    not images; a map without any spread becomes fully transparent. Patches are joined by bicubic
    interpolation.

    Args:
        attention: Weights of the patches, shape ``(h, w)``, finite and not negative.

    Returns:
        RGBA ``uint8`` with ``OVERLAY_SIDE`` pixels on the longer side.

    Raises:
        ValueError: If the map is not 2-D or holds a negative or not finite weight.
    """
    weights = np.asarray(attention, np.float32)
    if weights.ndim != 2 or weights.size == 0:
        raise ValueError(f"attention must have shape (h, w), got {weights.shape}.")
    if not (np.isfinite(weights) & (weights >= 0)).all():
        raise ValueError("attention must be finite and not negative, but a patch's weight is not.")
    low, high = float(weights.min()), float(weights.max())
    spread = high - low
    strength = (weights - low) / spread if spread > 1e-6 * high else np.zeros_like(weights)
    rows, columns = weights.shape
    scale = OVERLAY_SIDE / max(rows, columns)
    size = (max(1, round(columns * scale)), max(1, round(rows * scale)))
    smooth = np.asarray(Image.fromarray(strength).resize(size, Image.Resampling.BICUBIC)).clip(0, 1)
    rgba = matplotlib.colormaps["inferno"](0.25 + 0.7 * smooth)
    rgba[..., 3] = 0.72 * smooth**0.8
    return (rgba * 255).round().astype(np.uint8)


def colour_field(values: NDArray[np.floating], low: float, high: float) -> NDArray[np.uint8]:
    """Colours a map of weights from ``low`` (dark) to ``high`` (bright), one even square per cell.

    Args:
        values: Weights, shape ``(h, w)``.
        low: The weight that gets the darkest colour; lower ones get it too.
        high: The weight that gets the brightest colour; higher ones get it too.

    Returns:
        RGB ``uint8`` with about ``OVERLAY_SIDE`` pixels on the longer side, at least one per cell.

    Raises:
        ValueError: If the map is not 2-D or ``high`` is not above ``low``.
    """
    weights = np.asarray(values, np.float32)
    if weights.ndim != 2 or weights.size == 0:
        raise ValueError(f"values must have shape (h, w), got {weights.shape}.")
    if not high > low:
        raise ValueError(f"high must be above low, got {high} and {low}.")
    rgb = (matplotlib.colormaps["viridis"]((weights - low) / (high - low))[..., :3] * 255).round().astype(np.uint8)
    times = max(1, OVERLAY_SIDE // max(weights.shape))
    return rgb.repeat(times, axis=0).repeat(times, axis=1)


@dataclass(frozen=True)
class FramedBox:
    """A finding's box in pixels of its image, from its upper left corner.

    Attributes:
        label: What is written at it: its finding, or the finding's number in `findings`.
        left: Where its name stands, in per cent of the image's width: its left side, or its right side where the name
            would reach beyond the image.
        top: In per cent of the height.
        place: Names of styles: ``"right"`` for a name left of ``left``, ``"inside"`` for one below ``top``.
    """

    finding: str
    x: float
    y: float
    width: float
    height: float
    label: str
    left: str
    top: str
    place: str


@dataclass(frozen=True)
class Frame:
    """An image with what is drawn over it.

    Attributes:
        image: The image as a ``data:`` address.
        caption: Text below it.
        alt: What the image is, for readers who do not see it.
        width: Its width in pixels, in which the boxes are given.
        height: Its height in pixels.
        overlay: An image stretched over the whole image, as a ``data:`` address; empty for none.
        boxes: Findings.
    """

    image: str
    caption: str
    alt: str
    width: int
    height: int
    overlay: str = ""
    boxes: Sequence[FramedBox] = ()


def frame(
    pixels: NDArray[np.uint8],
    caption: str,
    *,
    alt: str,
    overlay: NDArray[np.uint8] | None = None,
    boxes: Sequence[Mapping[str, object]] = (),
) -> Frame:
    """Returns an image with what is drawn over it.

    Args:
        pixels: The image, see `data_uri`.
        caption: Text below it.
        alt: What the image is, for readers who do not see it.
        overlay: RGBA image stretched over the whole image.
        boxes: Findings with ``finding``, ``x0``, ``y0``, ``x1`` and ``y1`` in pixels of ``pixels``.
    """
    above = "" if overlay is None else data_uri(overlay)
    height, width = pixels.shape[:2]
    labels = _labels(boxes)
    framed = [_framed(box, labels[str(box["finding"])], width, height) for box in boxes]
    return Frame(data_uri(pixels), caption, alt, width, height, above, framed)


def findings(boxes: Sequence[Mapping[str, object]]) -> str:
    """Returns the names of the boxes' findings, each once, joined by commas; numbered where boxes carry numbers."""
    return ", ".join(finding if label == finding else f"{label} {finding}" for finding, label in _labels(boxes).items())


def _labels(boxes: Sequence[Mapping[str, object]]) -> dict[str, str]:
    """Returns what is written at the boxes of each finding."""
    names = list(dict.fromkeys(str(box["finding"]) for box in boxes))
    if len(boxes) <= MOST_NAMES:
        return {name: name for name in names}
    return {name: str(number) for number, name in enumerate(names, 1)}


def _framed(box: Mapping[str, object], label: str, width: int, height: int) -> FramedBox:
    x0, y0, x1, y1 = (float(str(box[key])) for key in ("x0", "y0", "x1", "y1"))
    right, inside = x0 > width / 2, y0 < height / 8
    place = " ".join(word for word, holds in (("right", right), ("inside", inside)) if holds)
    left = min(max((x1 if right else x0) / width, 0), 1)
    top = min(max(y0 / height, 0), 1)
    return FramedBox(
        str(box["finding"]), x0, y0, max(x1 - x0, 0), max(y1 - y0, 0),
        label, f"{100 * left:.1f}%", f"{100 * top:.1f}%", place,
    )  # fmt: skip
