"""Which bits of a DICOM file's words are pixel values, and which pixels are padding."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

_PADDING = {
    "PixelData": ("PixelPaddingValue", "PixelPaddingRangeLimit"),
    "FloatPixelData": ("FloatPixelPaddingValue", "FloatPixelPaddingRangeLimit"),
    "DoubleFloatPixelData": ("DoubleFloatPixelPaddingValue", "DoubleFloatPixelPaddingRangeLimit"),
}
"""Value and range limit of the padding, by the element that holds the pixels."""


def pixel_bits(dataset: Any, words: NDArray[Any]) -> NDArray[Any]:
    """Takes the bits that hold pixel values: ``BitsStored`` of them, the highest of which is ``HighBit`` (PS3.5 8.1.1).

    The others may hold anything, such as an overlay plane.

    Args:
        dataset: The file's elements.
        words: Decoded words, any shape.

    Returns:
        Values of the shape and dtype of ``words``, their sign restored where ``PixelRepresentation`` says so.
    """
    allocated = 8 * words.dtype.itemsize
    stored = int(dataset.get("BitsStored") or allocated)
    lowest = int(dataset.get("HighBit", stored - 1)) - stored + 1
    if words.dtype.kind not in "iu" or stored >= allocated or lowest < 0:
        return words
    # Shifted to the top of the word and back: what is above drops out, and a signed word repeats its sign.
    return (words << max(0, allocated - stored - lowest)) >> (allocated - stored)


def pixel_padding(dataset: Any, words: NDArray[Any], stored: NDArray[Any]) -> NDArray[np.bool_] | None:
    """Marks the pixels outside the field of view, if the file names their values (PS3.3 C.7.5.1.1.2).

    They are those of ``PixelPaddingValue``, or with ``PixelPaddingRangeLimit`` all between the two, whichever of them
    is the smaller. Files disagree on whether these numbers are signed: they are read as the pixels are.

    Args:
        dataset: The file's elements.
        words: Decoded words, ``(H, W)``.
        stored: Their pixel values.

    Returns:
        A mask of shape ``(H, W)``; ``None`` if there is no padding, or nothing else.
    """
    name, limit_name = next(_PADDING[keyword] for keyword in _PADDING if keyword in dataset)
    value = dataset.get(name)
    if value is None:
        return None
    limit = dataset.get(limit_name)
    ends = sorted(_as_pixel(end, stored.dtype) for end in (value, value if limit is None else limit))
    # A value that needs more bits than are stored can only be that of the whole word.
    bits = int(dataset.get("BitsStored") or 8 * stored.dtype.itemsize)
    fits = stored.dtype.kind == "f" or all(_fits(end, bits, stored.dtype.kind == "i") for end in ends)
    compared = stored if fits else words
    mask = (compared >= ends[0]) & (compared <= ends[1])
    return mask if mask.any() and not mask.all() else None


def _as_pixel(value: Any, dtype: np.dtype[Any]) -> float:
    """Reads a number as the pixels of the file are read: 63536 of a signed 16-bit image is -2000, and the other way."""
    if dtype.kind == "f":
        return float(value)
    bits = 8 * dtype.itemsize
    unsigned = int(value) % 2**bits
    return unsigned - 2**bits if dtype.kind == "i" and unsigned >= 2 ** (bits - 1) else unsigned


def _fits(value: float, bits: int, signed: bool) -> bool:
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    return low <= value <= high
