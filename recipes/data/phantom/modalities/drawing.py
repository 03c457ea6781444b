"""What every modality draws with: its streams, shapes laid over each other, and a picture with its box."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from recipes.data.phantom.chest.anatomy import Canvas
from recipes.data.phantom.fields import Field, PixelBox, enclosing_box, soft_step


@dataclass(frozen=True)
class Streams:
    """Where a drawing's randomness comes from.

    Attributes:
        patient: Anatomy; the same for all studies of a patient.
        acquisition: Pose, exposure, texture and noise.
        lesion: The finding, so that everything else stays as it is when the finding goes.
    """

    patient: np.random.Generator
    acquisition: np.random.Generator
    lesion: np.random.Generator


class Picture(NamedTuple):
    """A drawn image and the place of its finding.

    Attributes:
        image: ``uint8``, shape ``(size, size)``.
        box: Holds at least 95 % of what the finding changed; ``None`` where there is none.
    """

    image: NDArray[np.uint8]
    box: PixelBox | None


class Ellipse(NamedTuple):
    """An ellipse in the patient's frame: centre, half axes, and a turn in radians."""

    u: float
    v: float
    half_u: float
    half_v: float
    turn: float = 0.0

    def radius(self, canvas: Canvas) -> Field:
        """Returns the distance from the centre, 1 on the outline."""
        cos, sin = np.float32(np.cos(self.turn)), np.float32(np.sin(self.turn))
        du, dv = canvas.u - np.float32(self.u), canvas.v - np.float32(self.v)
        across = (du * cos + dv * sin) * np.float32(1 / self.half_u)
        down = (dv * cos - du * sin) * np.float32(1 / self.half_v)
        return np.sqrt(across * across + down * down)

    def mask(self, canvas: Canvas, width: float = 0.015) -> Field:
        """Returns 1 inside and 0 outside, over an edge ``width`` of the side wide (at least 1.2 pixels)."""
        return soft_step(1.0 - self.radius(canvas), _edge(self, canvas, width))


def over(field: Field, mask: Field, value: float | Field) -> Field:
    """Lays ``value`` over ``field`` where ``mask`` is 1."""
    return field + mask * (value - field)


def _edge(ellipse: Ellipse, canvas: Canvas, width: float) -> float:
    """Returns the width of an ellipse's soft edge, in units of its shorter half axis."""
    return canvas.width(width, 1.2) / min(ellipse.half_u, ellipse.half_v)


def _window(canvas: Canvas, u: float, v: float, reach: float) -> tuple[slice, slice]:
    """Returns the rows and columns that hold every pixel nearer than ``reach`` to a point."""
    last = canvas.size - 1
    (u0, u_x, u_y), (v0, v_x, v_y) = (
        (float(field[0, 0]), float(field[0, last] - field[0, 0]) / last, float(field[last, 0] - field[0, 0]) / last)
        for field in (canvas.u, canvas.v)
    )
    # The frame is turned, scaled and shifted against the pixels, so its inverse finds the point's pixel.
    area = u_x * v_y - u_y * v_x
    x = ((u - u0) * v_y - (v - v0) * u_y) / area
    y = ((v - v0) * u_x - (u - u0) * v_x) / area
    away = reach / area**0.5 + 1.0
    rows, columns = (slice(max(int(at - away), 0), max(int(at + away) + 2, 0)) for at in (y, x))
    return rows, columns


def lay(field: Field, canvas: Canvas, ellipse: Ellipse, value: float, width: float = 0.015) -> None:
    """Lays an ellipse over ``field`` in place, as `over` does with its mask, reading only the pixels around it."""
    reach = max(ellipse.half_u, ellipse.half_v) * (1.0 + 0.5 * _edge(ellipse, canvas, width))
    window = _window(canvas, ellipse.u, ellipse.v, reach)
    part = Canvas(canvas.u[window], canvas.v[window], canvas.size)
    field[window] = over(field[window], ellipse.mask(part, width), value)


def finish(plain: Field, altered: Field | None) -> Picture:
    """Turns brightness (0 to 1) into an image; the box is where ``altered`` differs from ``plain``.

    Args:
        plain: Brightness without the finding, shape ``(size, size)``.
        altered: The same with the finding, noise included in both; ``None`` for a normal study.
    """
    shown = np.clip(plain if altered is None else altered, 0.0, 1.0)
    image = np.rint(shown * np.float32(255.0)).astype(np.uint8)
    box = None if altered is None else enclosing_box(shown - np.clip(plain, 0.0, 1.0))
    return Picture(image, box)
