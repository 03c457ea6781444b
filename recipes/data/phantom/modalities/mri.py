"""Axial MRI slices of the brain, fluid-attenuated: fluid is dark, grey matter brighter than white matter."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from recipes.data.phantom.chest.anatomy import Canvas, draw_canvas
from recipes.data.phantom.fields import Field, ridge, smooth_noise, soft_step
from recipes.data.phantom.modalities.drawing import Ellipse, Picture, Streams, finish, lay, over
from recipes.data.phantom.modalities.findings import Place

_AIR, _BONE, _FLUID, _SCALP, _WHITE, _GREY = 0.02, 0.06, 0.12, 0.72, 0.42, 0.54


@dataclass(frozen=True)
class _Head:
    """What stays the same over a patient's slices."""

    brain: Ellipse
    ventricles: tuple[Ellipse, ...]
    folds: Field
    cortex: float


def _draw_head(rng: np.random.Generator, size: int) -> _Head:
    u = rng.uniform
    gap, wide, tall, front = u(0.050, 0.065), u(0.022, 0.034), u(0.075, 0.10), u(0.40, 0.43)
    horns = tuple(
        Ellipse(0.5 + side * across, v, half_u, half_v, side * turn)
        for side in (-1, 1)
        for across, v, half_u, half_v, turn in (
            (gap, front, wide, tall, 0.30),
            (gap + 0.025, front + 0.19, 0.8 * wide, 0.9 * tall, -0.45),
        )
    )
    return _Head(
        brain=Ellipse(0.5, 0.5, u(0.335, 0.365), u(0.405, 0.43)),
        ventricles=(*horns, Ellipse(0.5, front + 0.09, 0.012, 0.05)),
        folds=smooth_noise(rng, size, 13),
        cortex=u(0.84, 0.89),
    )


def _draw_slice(rng: np.random.Generator, head: _Head, canvas: Canvas, radius: Field) -> Field:
    """Lays scalp, bone, fluid, brain and ventricles over each other."""
    edge = 0.04
    field = over(np.full_like(canvas.u, _AIR), soft_step(1.19 - radius, edge), _SCALP)
    field = over(field, soft_step(1.12 - radius, edge), _BONE)
    field = over(field, soft_step(1.03 - radius, edge), _FLUID)
    field = over(field, soft_step(1.0 - radius, edge), _GREY)
    inner = radius + 0.05 * head.folds
    white = _WHITE + np.float32(0.012) * smooth_noise(rng, canvas.size, 12)
    field = over(field, soft_step(head.cortex - inner, 0.06), white)
    furrows = ridge(head.folds, 0.55) * soft_step(radius - 0.74, 0.16) * soft_step(1.02 - radius, 0.06)
    field = over(field, 0.85 * furrows, _FLUID)
    fissure = ridge(canvas.u - 0.5, canvas.width(0.02, 2.0)) * soft_step(np.abs(canvas.v - 0.5) - 0.17, 0.06)
    field = over(field, 0.8 * fissure * soft_step(1.0 - radius, edge), _FLUID)
    for side in (-1, 1):
        lay(field, canvas, Ellipse(0.5 + side * 0.125, 0.50, 0.035, 0.055, side * 0.3), _GREY, 0.03)
    for ventricle in head.ventricles:
        lay(field, canvas, ventricle, _FLUID)
    return field


_Drawer = Callable[[np.random.Generator, Place, _Head, Canvas, Field], Field]


def _tumor(rng: np.random.Generator, place: Place, head: _Head, canvas: Canvas, field: Field) -> Field:
    """Draws a large mass with a bright uneven ring, a dark middle and swelling around it."""
    u = 0.5 + place.side * rng.uniform(0.165, 0.20)
    v = rng.uniform(0.27, 0.36) if place.zone == 0 else rng.uniform(0.64, 0.72)
    size = rng.uniform(0.075, 0.105)
    outline = Ellipse(u, v, size, size * rng.uniform(0.85, 1.15), rng.uniform(0.0, 3.0)).radius(canvas)
    outline = outline + 0.10 * smooth_noise(rng, canvas.size, 7)
    inside = soft_step(0.99 - head.brain.radius(canvas), 0.05)
    swollen = over(field, inside * soft_step(1.35 - outline, 0.3), rng.uniform(0.62, 0.70))
    ringed = over(swollen, inside * soft_step(1.0 - outline, 0.18), rng.uniform(0.92, 1.05))
    return over(ringed, inside * soft_step(rng.uniform(0.62, 0.72) - outline, 0.18), rng.uniform(0.16, 0.26))


def _infarct(rng: np.random.Generator, place: Place, head: _Head, canvas: Canvas, field: Field) -> Field:
    """Draws a bright wedge that widens towards the cortex."""
    turn = (-0.85, 0.0, 0.85)[place.zone] + rng.uniform(-0.22, 0.22)
    brain = head.brain
    across = (canvas.u - np.float32(brain.u)) * np.float32(place.side / brain.half_u)
    down = (canvas.v - np.float32(brain.v)) * np.float32(1 / brain.half_v)
    radius = np.sqrt(across * across + down * down)
    angle = np.arctan2(down, across) - np.float32(turn)
    spread = rng.uniform(0.20, 0.30)
    uneven = 0.05 * smooth_noise(rng, canvas.size, 10)
    wedge = soft_step((spread - np.abs(angle)) * radius + uneven, 0.08)
    wedge *= soft_step(radius - rng.uniform(0.50, 0.62), 0.08) * soft_step(1.0 - radius, 0.05)
    return over(field, wedge, rng.uniform(0.78, 0.88) + 0.04 * smooth_noise(rng, canvas.size, 14))


def _plaque(rng: np.random.Generator, place: Place, head: _Head, canvas: Canvas, field: Field) -> Field:
    """Draws a tiny bright oval in white matter."""
    del head
    across, v = ((0.125, 0.33), (0.15, 0.645), (0.20, 0.47))[place.zone]
    u = 0.5 + place.side * (across + rng.uniform(-0.015, 0.02))
    long = rng.uniform(0.026, 0.036)
    oval = Ellipse(u, v + rng.uniform(-0.03, 0.03), long, long * rng.uniform(0.6, 0.8), rng.uniform(0.0, 3.0))
    return over(field, oval.mask(canvas), rng.uniform(0.95, 1.05))


_DRAWERS: dict[str, _Drawer] = {"brain tumor": _tumor, "infarct": _infarct, "plaque": _plaque}


def draw_mri(finding: str | None, place: Place | None, streams: Streams, size: int) -> Picture:
    """Draws an axial slice at the level of the lateral ventricles.

    Args:
        finding: Name of a finding of this modality, or ``None`` for a normal slice.
        place: Where it lies; ``None`` exactly where ``finding`` is.
        streams: Where the randomness comes from.
        size: Side of the image in pixels.
    """
    rng = streams.acquisition
    head = _draw_head(streams.patient, size)
    canvas = draw_canvas(rng, size)
    field = _draw_slice(rng, head, canvas, head.brain.radius(canvas))
    # The coil is nearer to one side, so brightness drifts over the slice.
    coil = np.float32(rng.uniform(0.85, 1.05)) * (1.0 + 0.06 * smooth_noise(rng, size, 2))
    noise = np.float32(rng.uniform(0.010, 0.030)) * rng.standard_normal((size, size), dtype=np.float32)
    plain = coil * field + noise
    if finding is None or place is None:
        return finish(plain, None)
    return finish(plain, coil * _DRAWERS[finding](streams.lesion, place, head, canvas, field) + noise)
