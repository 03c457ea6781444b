"""DICOM's window: which values are shown black and white (PS3.3 C.11.2.1.2 and C.11.2.1.3)."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from recipes.data.images.intensity import stretch


class Window(NamedTuple):
    """A window of a DICOM file.

    Attributes:
        center: Value shown in mid-grey.
        width: Range of values that are told apart.
        function: ``LINEAR``, ``LINEAR_EXACT`` or ``SIGMOID``.
    """

    center: float
    width: float
    function: str


def first_window(dataset: Any) -> Window | None:
    """Reads the first window of a file, or ``None`` if it has none."""
    center, width = _first(dataset, "WindowCenter"), _first(dataset, "WindowWidth")
    if center is None or width is None:
        return None
    return Window(center, width, str(dataset.get("VOILUTFunction") or "LINEAR"))


def _first(dataset: Any, keyword: str) -> float | None:
    """Reads an element of one or many numbers: the first one, or ``None``."""
    value = dataset.get(keyword)
    if value is None or value == "":
        return None
    return float(value if isinstance(value, int | float) else value[0])


def windowed(values: NDArray[Any], window: Window) -> NDArray[np.uint8]:
    """Maps a window to 0..255.

    ``LINEAR`` maps ``center - 0.5 - (width - 1) / 2`` to 0 and ``center - 0.5 + (width - 1) / 2`` to 255, for widths
    from 1 on. Below 1 its ends would change places, so files that have such a width (values rescaled to fractions)
    are shown by ``LINEAR_EXACT``, which maps ``center - width / 2`` to 0 and ``center + width / 2`` to 255.

    Args:
        values: Real numbers, any shape.
        window: The window.

    Returns:
        ``uint8`` of the shape of ``values``.

    Raises:
        ValueError: If the width is not above 0, or DICOM does not define the function.
    """
    center, width, function = window
    if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        raise ValueError(f"its VOI LUT function {function!r} is none of LINEAR, LINEAR_EXACT, SIGMOID")
    if not width > 0:
        raise ValueError(
            f"its window width {width:g} is too small for the VOI LUT function {function}, expected more than 0: "
            "remove WindowCenter and WindowWidth from the file to show its whole range"
        )
    if function == "SIGMOID":
        exponent = np.clip(-4.0 * (values.astype(np.float64) - center) / width, -700.0, 700.0)
        return stretch(1.0 / (1.0 + np.exp(exponent)), 0.0, 1.0)
    if function == "LINEAR" and width >= 1:
        half = (width - 1.0) / 2.0
        return stretch(values, center - 0.5 - half, center - 0.5 + half)
    return stretch(values, center - width / 2.0, center + width / 2.0)
