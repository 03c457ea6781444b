"""Building blocks of a drawing: soft steps, smooth noise, and the box around what a lesion changed."""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.float32]
"""A picture under construction, shape ``(size, size)``."""

PixelBox = tuple[float, float, float, float]
"""``(x0, y0, x1, y1)`` in pixels, half open."""

TRIMMED = 0.005
"""Share of a lesion's energy that its box may leave out on each of the four sides."""


def soft_step(distance: Field, width: float) -> Field:
    """Rises smoothly from 0 to 1 as ``distance`` goes from ``-width / 2`` to ``width / 2``."""
    t = np.clip(distance * (1.0 / width) + 0.5, 0.0, 1.0)
    return t * t * (3.0 - 2.0 * t)


def ridge(distance: Field, width: float) -> Field:
    """Draws a line where ``distance`` is 0: 1 on it, falling linearly to 0 at ``width / 2``."""
    return np.maximum(1.0 - np.abs(distance) * (2.0 / width), 0.0)


@lru_cache(maxsize=64)
def _spline(size: int, cells: int) -> Field:
    """Returns cubic B-spline weights from ``cells + 3`` knots to ``size`` pixels, scaled to unit variance."""
    position = (np.arange(size) + 0.5) * (cells / size)
    start = np.floor(position).astype(int)
    t = position - start
    rows = np.arange(size)
    weights = np.zeros((size, cells + 3))
    cubic = ((1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3)
    for offset, weight in enumerate(cubic):
        weights[rows, start + offset] = weight / 6
    scale = np.sqrt(np.mean(np.sum(weights**2, axis=1)))
    return (weights / scale).astype(np.float32)


def smooth_noise(rng: np.random.Generator, size: int, cells: int, *, rows: int | None = None) -> Field:
    """Draws smooth noise of mean 0 and variance about 1 whose grain is ``size / cells`` pixels.

    With ``rows`` the grain is ``size / rows`` pixels high, and ``size / cells`` wide as before.
    """
    rows = cells if rows is None else rows
    knots = rng.standard_normal((rows + 3, cells + 3), dtype=np.float32)
    return _spline(size, rows) @ knots @ _spline(size, cells).T


def enclosing_box(change: Field) -> PixelBox | None:
    """Returns the box that holds at least 98 % of ``|change|``, or ``None`` where nothing changed."""
    energy = np.abs(change)
    edges: list[tuple[float, float]] = []
    for axis in (0, 1):
        cumulative = np.cumsum(energy.sum(axis=axis, dtype=np.float64))
        total = cumulative[-1]
        if total == 0.0:
            return None
        first = np.searchsorted(cumulative, TRIMMED * total)
        last = np.searchsorted(cumulative, (1.0 - TRIMMED) * total)
        edges.append((float(first), float(last) + 1.0))
    (x0, x1), (y0, y1) = edges
    return x0, y0, x1, y1
