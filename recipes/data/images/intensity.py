"""Maps pixel values of any depth to 8 bits, by rules that look at one image alone."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def stretch(values: NDArray[Any], low: float, high: float) -> NDArray[np.uint8]:
    """Maps ``low`` to 0 and ``high`` to 255, linearly, and clips what lies outside.

    ``round(255 * clip((v - low) / (high - low), 0, 1))``; NaN becomes 0. Where ``low == high`` the map is
    a step: 255 above ``high``, else 0.

    Args:
        values: Real numbers, any shape.
        low: Value shown black.
        high: Value shown white, not below ``low``.

    Returns:
        ``uint8`` array of the shape of ``values``.
    """
    # float32 holds every 16-bit value exactly and halves the memory of a large radiograph.
    real = values.astype(np.result_type(values.dtype, np.float32))
    if high == low:
        return np.where(real > high, np.uint8(255), np.uint8(0))
    scaled = np.clip((real - low) / (high - low), 0.0, 1.0)
    return np.rint(255.0 * np.nan_to_num(scaled, nan=0.0)).astype(np.uint8)


def stretch_min_max(values: NDArray[Any], ignore: NDArray[np.bool_] | None = None) -> NDArray[np.uint8]:
    """Maps the image's own smallest value to 0 and its largest to 255.

    A fixed division (16-bit by 257) would show 12-bit data stored in 16 bits nearly black; percentiles would
    clip small bright findings. A constant image becomes 0.

    Args:
        values: Real numbers, any shape.
        ignore: Pixels to leave out of the range and to show black, such as a scanner's padding.

    Returns:
        ``uint8`` array of the shape of ``values``. NaN and minus infinity become 0, infinity 255.

    Raises:
        ValueError: If no pixel is finite and counted.
    """
    counted = np.isfinite(values)
    if ignore is not None:
        counted &= ~ignore
    if not counted.any():
        raise ValueError("no pixel holds a finite value")
    shown = stretch(values, float(values[counted].min()), float(values[counted].max()))
    if ignore is not None:
        shown[ignore] = 0
    return shown
