"""Axial CT slices of the upper abdomen, in a soft-tissue window: 0 is air, 1 is bone."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from recipes.data.phantom.chest.anatomy import Canvas, draw_canvas
from recipes.data.phantom.fields import Field, smooth_noise, soft_step
from recipes.data.phantom.modalities.drawing import Ellipse, Picture, Streams, finish, lay, over
from recipes.data.phantom.modalities.findings import Place

_AIR, _FAT, _MUSCLE, _BONE = 0.02, 0.20, 0.46, 0.97
_LIVER, _SPLEEN, _KIDNEY, _VESSEL, _BOWEL, _FLUID = 0.58, 0.60, 0.70, 0.72, 0.44, 0.30


@dataclass(frozen=True)
class _Abdomen:
    """What stays the same over a patient's slices."""

    body: Ellipse
    fat: float
    right_lobe: Ellipse
    left_lobe: Ellipse
    kidneys: tuple[Ellipse, Ellipse]
    spleen: Ellipse
    stomach: Ellipse
    spine: Ellipse
    aorta: Ellipse
    loops: tuple[Ellipse, ...]


def _draw_abdomen(rng: np.random.Generator) -> _Abdomen:
    u = rng.uniform
    fat = u(0.02, 0.055)
    kidneys = tuple(
        Ellipse(0.5 + side * u(0.17, 0.20), u(0.62, 0.655), u(0.055, 0.066), u(0.072, 0.086), side * u(-0.5, -0.1))
        for side in (-1, 1)
    )
    loops = tuple(
        Ellipse(u(0.42, 0.74), u(0.31, 0.50), u(0.028, 0.045), u(0.024, 0.038), u(0.0, 3.0)) for _ in range(6)
    )
    return _Abdomen(
        body=Ellipse(0.5, 0.51, u(0.43, 0.47), u(0.33, 0.37)),
        fat=fat,
        right_lobe=Ellipse(u(0.27, 0.29), u(0.44, 0.47), u(0.145, 0.165), u(0.20, 0.225), u(-0.15, 0.2)),
        left_lobe=Ellipse(u(0.40, 0.43), u(0.325, 0.345), u(0.15, 0.18), u(0.085, 0.10), u(-0.15, 0.1)),
        kidneys=(kidneys[0], kidneys[1]),
        spleen=Ellipse(u(0.80, 0.82), u(0.50, 0.54), u(0.055, 0.068), u(0.10, 0.13), u(0.1, 0.4)),
        stomach=Ellipse(u(0.66, 0.70), u(0.34, 0.37), u(0.085, 0.11), u(0.06, 0.08), u(-0.4, 0.2)),
        spine=Ellipse(0.5, u(0.66, 0.68), u(0.055, 0.065), u(0.048, 0.056)),
        aorta=Ellipse(u(0.51, 0.535), u(0.575, 0.59), *[u(0.022, 0.028)] * 2),
        loops=loops,
    )


def _draw_slice(rng: np.random.Generator, abdomen: _Abdomen, canvas: Canvas) -> Field:
    """Lays the organs over each other, from the skin inwards."""
    thickness = min(abdomen.body.half_u, abdomen.body.half_v)
    depth = (1.0 - abdomen.body.radius(canvas)) * thickness
    field = over(np.full_like(canvas.u, _AIR), soft_step(depth, 0.015), _FAT)
    field = over(field, soft_step(depth - abdomen.fat, 0.015), _MUSCLE)
    field = over(field, soft_step(depth - abdomen.fat - 0.03, 0.012), _FAT + 0.03)
    ribs = np.cos(9.0 * np.arctan2(canvas.v - 0.51, canvas.u - 0.5) + 0.4) - 0.86
    wall = soft_step(depth - abdomen.fat - 0.004, 0.008) * soft_step(abdomen.fat + 0.026 - depth, 0.008)
    field = over(field, soft_step(ribs, 0.1) * wall, _BONE)
    for side in (-1, 1):
        lay(field, canvas, Ellipse(0.5 + side * 0.09, 0.745, 0.075, 0.05, side * -0.2), _MUSCLE)
    for loop in abdomen.loops:
        lay(field, canvas, loop, _BOWEL + 0.08)
        lay(field, canvas, loop._replace(half_u=0.6 * loop.half_u, half_v=0.6 * loop.half_v), _BOWEL - 0.06)
    stomach = abdomen.stomach
    lay(field, canvas, stomach, _BOWEL)
    gas = Ellipse(stomach.u, stomach.v - 0.35 * stomach.half_v, 0.6 * stomach.half_u, 0.4 * stomach.half_v)
    lay(field, canvas, gas, _AIR)
    lay(field, canvas, abdomen.spleen, _SPLEEN)
    liver = np.maximum(abdomen.right_lobe.mask(canvas), abdomen.left_lobe.mask(canvas))
    texture = _LIVER + np.float32(0.012) * smooth_noise(rng, canvas.size, 16)
    field = over(field, liver * soft_step(depth - abdomen.fat - 0.03, 0.012), texture)
    for kidney in abdomen.kidneys:
        lay(field, canvas, kidney, _KIDNEY)
        towards = 1.0 if kidney.u < 0.5 else -1.0
        hilum = Ellipse(kidney.u + towards * 0.7 * kidney.half_u, kidney.v, 0.5 * kidney.half_u, 0.25 * kidney.half_v)
        lay(field, canvas, hilum, _FAT + 0.1)
    lay(field, canvas, abdomen.aorta, _VESSEL)
    lay(field, canvas, Ellipse(0.455, abdomen.aorta.v, 0.03, 0.02), _VESSEL - 0.06)
    spine = abdomen.spine
    lay(field, canvas, spine, _BONE - 0.14)
    lay(field, canvas, Ellipse(spine.u, spine.v + 0.085, 0.028, 0.022), _MUSCLE)
    for du, dv, half_u, half_v in ((0.0, 0.135, 0.012, 0.035), (-0.06, 0.09, 0.035, 0.012), (0.06, 0.09, 0.035, 0.012)):
        lay(field, canvas, Ellipse(spine.u + du, spine.v + dv, half_u, half_v), _BONE)
    return field


_Drawer = Callable[[np.random.Generator, Place, _Abdomen, Canvas, Field], Field]


def _liver_mass(rng: np.random.Generator, place: Place, abdomen: _Abdomen, canvas: Canvas, field: Field) -> Field:
    """Draws a large dark region with an uneven outline, a faint bright rim and a darker middle."""
    lobe = abdomen.left_lobe if place.zone == 2 else abdomen.right_lobe
    radius = rng.uniform(0.062, 0.075) if place.zone == 2 else rng.uniform(0.070, 0.100)
    across, down = ((-0.02, 0.0), (-0.01, 0.085), (0.0, -0.075))[(place.zone + 1) % 3]
    u = lobe.u + across + rng.uniform(-0.02, 0.02)
    v = lobe.v + down + rng.uniform(-0.02, 0.02)
    outline = Ellipse(u, v, radius, radius * rng.uniform(0.8, 1.1), rng.uniform(0.0, 3.0)).radius(canvas)
    outline = outline + 0.08 * smooth_noise(rng, canvas.size, 7)
    edge = canvas.width(0.015, 1.2) / radius
    rimmed = over(field, soft_step(1.14 - outline, edge), _LIVER + 0.07)
    tissue = rng.uniform(0.32, 0.40) - 0.10 * soft_step(0.55 - outline, 0.4)
    return over(rimmed, soft_step(1.0 - outline, edge), tissue)


def _in_kidney(rng: np.random.Generator, place: Place, abdomen: _Abdomen, reach: float) -> tuple[float, float]:
    """Returns a place in the outer half of a kidney, in front of or behind its middle."""
    kidney = abdomen.kidneys[0 if place.side < 0 else 1]
    down = (-1.0 if place.zone == 0 else 1.0) * rng.uniform(0.35, 0.95)
    return kidney.u + place.side * reach * np.cos(down) * kidney.half_u, kidney.v + reach * np.sin(down) * kidney.half_v


def _kidney_cyst(rng: np.random.Generator, place: Place, abdomen: _Abdomen, canvas: Canvas, field: Field) -> Field:
    """Draws a round, smooth, fluid-filled region at the margin of a kidney, with a thin wall."""
    u, v = _in_kidney(rng, place, abdomen, rng.uniform(0.5, 0.8))
    radius = rng.uniform(0.042, 0.056)
    walled = over(field, Ellipse(u, v, radius + 0.012, radius + 0.012).mask(canvas), _KIDNEY)
    return over(walled, Ellipse(u, v, radius, radius).mask(canvas), rng.uniform(_FLUID - 0.06, _FLUID))


def _kidney_stone(rng: np.random.Generator, place: Place, abdomen: _Abdomen, canvas: Canvas, field: Field) -> Field:
    """Draws a tiny region as bright as bone inside a kidney."""
    u, v = _in_kidney(rng, place, abdomen, rng.uniform(0.1, 0.55))
    radius = rng.uniform(0.017, 0.025)
    stone = Ellipse(u, v, radius, radius * rng.uniform(0.8, 1.3), rng.uniform(0.0, 3.0))
    return over(field, stone.mask(canvas), 1.2)


_DRAWERS: dict[str, _Drawer] = {
    "liver mass": _liver_mass,
    "kidney cyst": _kidney_cyst,
    "kidney stone": _kidney_stone,
}


def draw_ct(finding: str | None, place: Place | None, streams: Streams, size: int) -> Picture:
    """Draws an axial slice through liver and kidneys.

    Args:
        finding: Name of a finding of this modality, or ``None`` for a normal slice.
        place: Where it lies; ``None`` exactly where ``finding`` is.
        streams: Where the randomness comes from.
        size: Side of the image in pixels.
    """
    rng = streams.acquisition
    abdomen = _draw_abdomen(streams.patient)
    canvas = draw_canvas(rng, size)
    field = _draw_slice(rng, abdomen, canvas)
    gain, offset = np.float32(rng.uniform(0.88, 1.06)), np.float32(rng.uniform(-0.04, 0.05))
    grain = 0.7 * rng.standard_normal((size, size), dtype=np.float32) + 0.7 * smooth_noise(rng, size, 32)
    grain *= np.float32(rng.uniform(0.012, 0.032))
    plain = gain * field + offset + grain
    if finding is None or place is None:
        return finish(plain, None)
    altered = _DRAWERS[finding](streams.lesion, place, abdomen, canvas, field)
    return finish(plain, gain * altered + offset + grain)
