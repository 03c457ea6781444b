"""Ultrasound of the breast: layers under a linear or a curved probe, speckle, shadows along the beam."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from recipes.data.phantom.chest.anatomy import Canvas
from recipes.data.phantom.fields import Field, ridge, smooth_noise, soft_step
from recipes.data.phantom.modalities.drawing import Ellipse, Picture, Streams, finish, over
from recipes.data.phantom.modalities.findings import Place

_GRAIN, _GRAIN_ROWS = 44, 88
"""Speckle cells across and down the image: a beam is wider than its pulse is long."""

_APEX = -0.30
"""Height of the point that a curved probe's beams come from, above the image."""


@dataclass(frozen=True)
class _Scan:
    """The pixels as the probe sees them.

    Attributes:
        canvas: The image's frame.
        depth: Distance from the probe, in units of the image's side.
        beam: Which beam a pixel lies on: its place at depth 1/2, in units of the image's side.
        seen: 1 where there is a beam, 0 outside.
    """

    canvas: Canvas
    depth: Field
    beam: Field
    seen: Field

    def beam_at(self, u: float, v: float) -> float:
        """Returns the beam through a point."""
        size = self.canvas.size
        row, column = (min(max(int(place * size), 0), size - 1) for place in (v, u))
        return float(self.beam[row, column])


def _draw_scan(patient: np.random.Generator, rng: np.random.Generator, size: int) -> _Scan:
    axis = ((np.arange(size) + 0.5) / size).astype(np.float32)
    canvas = Canvas(u=np.tile(axis, (size, 1)), v=np.tile(axis[:, None], (1, size)), size=size)
    curved = patient.random() < 0.5
    top, half = rng.uniform(0.03, 0.06), rng.uniform(0.40, 0.46)
    across = canvas.u - np.float32(0.5)
    if not curved:
        seen = soft_step(half - np.abs(across), 0.01) * soft_step(canvas.v - top, 0.01)
        return _Scan(canvas, canvas.v - np.float32(top), across, seen * soft_step(0.96 - canvas.v, 0.01))
    down = canvas.v - np.float32(_APEX)
    reach = np.sqrt(across * across + down * down)
    depth = reach - np.float32(top - _APEX)
    beam = np.arctan2(across, down) * np.float32(0.5 + top - _APEX)
    seen = soft_step(1.24 * half - np.abs(beam), 0.01) * soft_step(depth, 0.01)
    return _Scan(canvas, depth, beam, seen * soft_step(0.93 - depth, 0.01))


def _draw_layers(patient: np.random.Generator, scan: _Scan) -> Field:
    """Draws the echo strength of skin, fat with septa, gland, fascia and muscle."""
    size = scan.canvas.size
    wave = 0.022 * smooth_noise(patient, size, 3)
    depth = scan.depth + wave
    fat, fascia = patient.uniform(0.15, 0.22), patient.uniform(0.70, 0.78)
    echo = np.full_like(depth, 0.30)
    echo = over(echo, soft_step(depth - fat, 0.05), 0.62 + 0.10 * smooth_noise(patient, size, 9))
    echo = over(echo, soft_step(depth - fascia, 0.02), 0.30 + 0.16 * np.sin(depth * np.float32(120.0)))
    septa = ridge(smooth_noise(patient, size, 5), 0.22) * soft_step(fascia - depth, 0.03)
    echo = over(echo, 0.5 * septa, 1.0)
    echo = over(echo, ridge(depth - fascia, 0.035), 1.6)
    echo = over(echo, soft_step(0.035 - scan.depth, 0.02), 1.5)
    return np.maximum(echo, 0.12)


def _behind(scan: _Scan, u: float, v: float, half: float, length: float) -> Field:
    """Returns 1 behind a lesion along the beams that pass through it, fading to 0 over ``length``."""
    row = min(int(v * scan.canvas.size), scan.canvas.size - 1)
    column = min(int(u * scan.canvas.size), scan.canvas.size - 1)
    below = scan.depth - scan.depth[row, column]
    lane = soft_step(half - np.abs(scan.beam - scan.beam_at(u, v)), 0.03)
    return lane * soft_step(below, 0.03) * np.clip(1.0 - below / length, 0.0, 1.0)


_Drawer = Callable[[np.random.Generator, Place, _Scan, Field], Field]


def _place(rng: np.random.Generator, place: Place) -> tuple[float, float]:
    v = rng.uniform(0.27, 0.36) if place.zone == 0 else rng.uniform(0.58, 0.68)
    return 0.5 + place.side * 0.21 + rng.uniform(-0.04, 0.04), v


def _cyst(rng: np.random.Generator, place: Place, scan: _Scan, echo: Field) -> Field:
    """Draws a large, black, smooth region; the tissue behind it is brighter."""
    u, v = _place(rng, place)
    half_u = rng.uniform(0.085, 0.125)
    cyst = Ellipse(u, v, half_u, half_u * rng.uniform(0.65, 0.9), rng.uniform(-0.3, 0.3))
    brighter = echo * (1.0 + rng.uniform(1.6, 2.6) * _behind(scan, u, v, 0.8 * half_u, 0.20))
    return over(brighter, cyst.mask(scan.canvas), 0.012)


def _mass(rng: np.random.Generator, place: Place, scan: _Scan, echo: Field) -> Field:
    """Draws a dark grey, spiky region with a bright edge, which casts a shadow."""
    u, v = _place(rng, place)
    half = rng.uniform(0.058, 0.078)
    outline = Ellipse(u, v, half, half * rng.uniform(0.9, 1.2)).radius(scan.canvas)
    angle = np.arctan2(scan.canvas.v - np.float32(v), scan.canvas.u - np.float32(u))
    first, second = rng.uniform(0.0, 6.3, size=2).astype(np.float32)
    spikes = np.sin(angle * int(rng.integers(3, 6)) + first) + np.sin(angle * int(rng.integers(7, 12)) + second)
    outline = outline + 0.10 * spikes + 0.08 * smooth_noise(rng, scan.canvas.size, 10)
    shaded = echo * (1.0 - rng.uniform(0.75, 0.88) * _behind(scan, u, v, 0.8 * half, 0.20))
    rimmed = over(shaded, soft_step(1.25 - outline, 0.2), 1.3)
    return over(rimmed, soft_step(1.0 - outline, 0.2), rng.uniform(0.09, 0.13))


def _calcifications(rng: np.random.Generator, place: Place, scan: _Scan, echo: Field) -> Field:
    """Draws a cluster of tiny bright points, each with a faint short shadow."""
    u, v = _place(rng, place)
    count = int(rng.integers(5, 9))
    turn = rng.uniform(0.0, 6.3)
    for point in range(count):
        # The golden angle spreads the points over the cluster without overlap.
        reach, angle = 0.042 * np.sqrt((point + 0.5) / count), turn + 2.4 * point
        at_u, at_v = u + reach * np.cos(angle), v + reach * np.sin(angle)
        echo = echo * (1.0 - 0.35 * _behind(scan, at_u, at_v, 0.010, 0.07))
        echo = over(echo, Ellipse(at_u, at_v, 0.011, 0.011).mask(scan.canvas), rng.uniform(5.0, 8.0))
    return echo


_DRAWERS: dict[str, _Drawer] = {"simple cyst": _cyst, "solid mass": _mass, "calcifications": _calcifications}


def draw_ultrasound(finding: str | None, place: Place | None, streams: Streams, size: int) -> Picture:
    """Draws a B-mode picture: the logarithm of echo strength times speckle, weaker with depth.

    Args:
        finding: Name of a finding of this modality, or ``None`` for normal tissue.
        place: Where it lies; ``None`` exactly where ``finding`` is.
        streams: Where the randomness comes from.
        size: Side of the image in pixels.
    """
    rng = streams.acquisition
    scan = _draw_scan(streams.patient, rng, size)
    echo = _draw_layers(streams.patient, scan)
    # The length of a complex Gaussian has Rayleigh's distribution, that of fully developed speckle.
    real, imaginary = (smooth_noise(rng, size, _GRAIN, rows=_GRAIN_ROWS) for _ in range(2))
    speckle = np.log(np.hypot(real, imaginary) + np.float32(0.3))
    gain, contrast, loss = rng.uniform(0.56, 0.68), rng.uniform(0.17, 0.21), rng.uniform(0.08, 0.22)
    base = np.float32(gain) - np.float32(loss) * scan.depth + np.float32(rng.uniform(0.09, 0.14)) * speckle

    def compressed(strength: Field) -> Field:
        return (base + np.float32(contrast) * np.log(strength)) * scan.seen

    plain = compressed(echo)
    if finding is None or place is None:
        return finish(plain, None)
    return finish(plain, compressed(_DRAWERS[finding](streams.lesion, place, scan, echo)))
