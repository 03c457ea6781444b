"""Radiographs of the chest: the anatomy of the radiograph set with one finding at a given place."""

from collections.abc import Callable

import numpy as np

from recipes.data.phantom.chest.anatomy import Anatomy, Canvas, Chest, draw_anatomy, draw_canvas, draw_chest
from recipes.data.phantom.fields import Field, ridge, smooth_noise, soft_step
from recipes.data.phantom.modalities.drawing import Ellipse, Picture, Streams, finish
from recipes.data.phantom.modalities.findings import Place

_Drawer = Callable[[np.random.Generator, Place, Anatomy, Canvas, Chest], Field]


def _effusion(rng: np.random.Generator, place: Place, anatomy: Anatomy, canvas: Canvas, chest: Chest) -> Field:
    """Draws smooth fluid over the diaphragm that climbs the chest wall."""
    index = 0 if place.side < 0 else 1
    lung = chest.lungs[index]
    level = anatomy.dome_v[index] - rng.uniform(0.08, 0.18)
    across = np.clip((lung.d - (anatomy.lung_d - anatomy.lung_half)) / (2 * anatomy.lung_half), 0.0, 1.0)
    surface = level - rng.uniform(0.07, 0.12) * across**3
    depth = soft_step(canvas.v - surface, canvas.width(0.035, 3.0))
    return rng.uniform(0.36, 0.48) * depth * lung.clear


def _consolidation(rng: np.random.Generator, place: Place, anatomy: Anatomy, canvas: Canvas, chest: Chest) -> Field:
    """Draws a mottled cloud with dark branching airways."""
    lung = chest.lungs[0 if place.side < 0 else 1]
    centre_d = anatomy.lung_d + rng.uniform(-0.01, 0.04)
    centre_v = rng.uniform(0.31, 0.40) if place.zone == 0 else rng.uniform(0.48, 0.58)
    across = (lung.d - centre_d) / rng.uniform(0.080, 0.105)
    down = (canvas.v - centre_v) / rng.uniform(0.070, 0.100)
    cloud = soft_step(0.9 - across * across - down * down + 0.30 * smooth_noise(rng, canvas.size, 8), 0.8)
    angle = np.arctan2(canvas.v - np.float32(0.47), lung.d - np.float32(0.06))
    airways = ridge(np.sin(8.0 * angle + rng.uniform(0.0, 6.3)), 0.6)
    mottle = 1.0 + 0.2 * smooth_noise(rng, canvas.size, 20)
    return rng.uniform(0.28, 0.42) * cloud * (mottle - 0.4 * airways) * lung.clear


def _nodule(rng: np.random.Generator, place: Place, anatomy: Anatomy, canvas: Canvas, chest: Chest) -> Field:
    """Draws one small bright disc with a sharp edge."""
    del chest
    d = anatomy.lung_d + (rng.uniform(-0.05, 0.05) if place.zone == 0 else rng.uniform(-0.01, 0.07))
    v = rng.uniform(0.28, 0.42) if place.zone == 0 else rng.uniform(0.50, 0.64)
    radius = rng.uniform(0.028, 0.042)
    disc = Ellipse(0.5 + place.side * d, v, radius, radius * rng.uniform(0.85, 1.15))
    return rng.uniform(0.38, 0.52) * disc.mask(canvas)


_DRAWERS: dict[str, _Drawer] = {
    "pleural effusion": _effusion,
    "consolidation": _consolidation,
    "lung nodule": _nodule,
}


def draw_xray(finding: str | None, place: Place | None, streams: Streams, size: int) -> Picture:
    """Draws a frontal chest radiograph.

    Args:
        finding: Name of a finding of this modality, or ``None`` for a normal chest.
        place: Where it lies; ``None`` exactly where ``finding`` is.
        streams: Where the randomness comes from.
        size: Side of the image in pixels.
    """
    rng = streams.acquisition
    anatomy = draw_anatomy(streams.patient)
    canvas = draw_canvas(rng, size)
    chest = draw_chest(rng, anatomy, canvas)
    k, gain, offset = (np.float32(value) for value in rng.uniform((1.5, 0.98, 0.0), (2.1, 1.12, 0.05)))
    haze = 0.012 * smooth_noise(rng, size, 3)
    haze += np.float32(rng.uniform(0.010, 0.024)) * rng.standard_normal((size, size), dtype=np.float32)

    def exposed(attenuation: Field) -> Field:
        return gain * (1.0 - np.exp(-k * attenuation)) + offset + haze

    plain = exposed(chest.attenuation)
    if finding is None or place is None:
        return finish(plain, None)
    return finish(plain, exposed(chest.attenuation + _DRAWERS[finding](streams.lesion, place, anatomy, canvas, chest)))
