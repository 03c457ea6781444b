"""How each visual pattern changes a normal chest.

Every function draws from its own stream and adds an attenuation change of its own, so a pattern looks the
same whichever others are present. None of them depends on a cause.
"""

from collections.abc import Callable

import numpy as np

from recipes.data.phantom.chest.anatomy import Anatomy, Canvas, Chest, Lung, heart_radius, lung_radius
from recipes.data.phantom.fields import Field, ridge, smooth_noise, soft_step

Lesions = list[Field]
"""One attenuation change per lesion; each gets a box of its own."""

LesionDrawer = Callable[[np.random.Generator, Anatomy, Canvas, Chest], Lesions]


def draw_consolidation(rng: np.random.Generator, anatomy: Anatomy, canvas: Canvas, chest: Chest) -> Lesions:
    """Draws a mottled cloud in one lung, cut straight by a fissure, with dark branching airways in it."""
    lung = chest.lungs[rng.integers(2)]
    centre_d = anatomy.lung_d + rng.uniform(-0.01, 0.03)
    centre_v = rng.uniform(0.33, 0.50)
    radius_d, radius_v = rng.uniform(0.090, 0.125), rng.uniform(0.075, 0.110)
    strength = rng.uniform(0.18, 0.34)
    fissure = centre_v + rng.uniform(0.35, 0.8) * radius_v
    tilt = rng.uniform(-0.25, 0.25)

    across, down = (lung.d - centre_d) / radius_d, (canvas.v - centre_v) / radius_v
    inside = 1.0 - across * across - down * down + 0.30 * smooth_noise(rng, canvas.size, 8)
    cloud = soft_step(inside - 0.1, 0.9)
    cloud *= soft_step(fissure - canvas.v + tilt * (lung.d - centre_d), canvas.width(0.015, 1.5))
    angle = np.arctan2(canvas.v - np.float32(0.47), lung.d - np.float32(0.06))
    airways = ridge(np.sin(8.0 * angle + rng.uniform(0.0, 6.3)), 0.6)
    mottle = 1.0 + 0.22 * smooth_noise(rng, canvas.size, 20)
    return [strength * cloud * (mottle - 0.45 * airways) * lung.clear]


def _nodule_places(rng: np.random.Generator, anatomy: Anatomy, count: int) -> list[tuple[float, float]]:
    """Draws places ``(u, v)`` in clear lung above its base, no two closer than 0.07."""
    places: list[tuple[float, float]] = []
    while len(places) < count:
        side = 1 if rng.random() < 0.5 else -1
        d, v = rng.uniform(0.09, 0.36), rng.uniform(0.22, 0.66)
        u = 0.5 + side * d
        place = np.float32(d), np.float32(v)
        shape = anatomy.lung_d, anatomy.lung_half, anatomy.lung_v, anatomy.lung_height
        in_lung = lung_radius(*place, *shape) < 0.82
        off_heart = heart_radius(anatomy, np.float32(u), np.float32(v)) > 1.2
        apart = all((u - other_u) ** 2 + (v - other_v) ** 2 > 0.07**2 for other_u, other_v in places)
        if in_lung and off_heart and apart:
            places.append((u, v))
    return places


def draw_nodules(rng: np.random.Generator, anatomy: Anatomy, canvas: Canvas, chest: Chest) -> Lesions:
    """Draws four to eight small bright discs with a sharp edge."""
    del chest  # places are checked against the anatomy itself, and a disc covers what lies behind it
    count = int(rng.integers(4, 9))
    lesions: Lesions = []
    for u, v in _nodule_places(rng, anatomy, count):
        radius = canvas.width(rng.uniform(0.014, 0.022), 1.1)
        distance = np.sqrt((canvas.u - np.float32(u)) ** 2 + (canvas.v - np.float32(v)) ** 2)
        lesions.append(rng.uniform(0.20, 0.34) * soft_step(radius - distance, canvas.width(0.012, 1.2)))
    return lesions


def draw_reticulation(rng: np.random.Generator, anatomy: Anatomy, canvas: Canvas, chest: Chest) -> Lesions:
    """Draws a net of fine lines over the middle and lower zones of both lungs, denser towards the base."""
    del anatomy
    # The zero lines of smooth noise form closed meshes; two layers give them crossings.
    net = np.zeros_like(canvas.v)
    for cells in (20, 27):
        net += ridge(smooth_noise(rng, canvas.size, cells), 0.75)
    strength = rng.uniform(0.09, 0.17)
    lesions: Lesions = []
    for lung in chest.lungs:
        top = rng.uniform(0.34, 0.46)
        zone = soft_step(canvas.v - top, 0.22) * lung.clear
        lesions.append(strength * net * zone)
    return lesions


def _fluid(rng: np.random.Generator, anatomy: Anatomy, canvas: Canvas, lung: Lung) -> Field:
    dome = anatomy.dome_v[0 if lung.side < 0 else 1]
    level = dome - rng.uniform(0.05, 0.12)
    rise = rng.uniform(0.07, 0.12)
    inner = anatomy.lung_d - anatomy.lung_half
    across = np.clip((lung.d - inner) / (2 * anatomy.lung_half), 0.0, 1.0)
    surface = level - rise * across**3
    depth = soft_step(canvas.v - surface, canvas.width(0.035, 3.0))
    return rng.uniform(0.34, 0.42) * depth * lung.clear


def draw_fluid(rng: np.random.Generator, anatomy: Anatomy, canvas: Canvas, chest: Chest) -> Lesions:
    """Draws smooth fluid over the diaphragm that hides its edge and climbs the chest wall."""
    first = int(rng.integers(2))
    sides = (first, 1 - first) if rng.random() < 0.25 else (first,)
    return [_fluid(rng, anatomy, canvas, chest.lungs[side]) for side in sides]


def draw_pleural_air(rng: np.random.Generator, anatomy: Anatomy, canvas: Canvas, chest: Chest) -> Lesions:
    """Draws a dark rim without vessels around the apex and the outer side of one lung, and the pleura's line."""
    lung = chest.lungs[rng.integers(2)]
    gap, top_gap = rng.uniform(0.045, 0.075), rng.uniform(0.075, 0.12)
    end = rng.uniform(0.50, 0.64)
    radius = lung_radius(
        lung.d,
        canvas.v,
        anatomy.lung_d - gap / 2,
        anatomy.lung_half - gap / 2,
        anatomy.lung_v,
        anatomy.lung_height - top_gap,
    )
    outside = (radius - 1.0) * np.float32(anatomy.lung_half)
    zone = lung.clear * soft_step(end - canvas.v, 0.15)
    rim = zone * soft_step(outside, canvas.width(0.012, 1.2))
    line = zone * ridge(outside, canvas.width(0.022, 2.2))
    return [rng.uniform(0.13, 0.20) * line - rim * (lung.vessels + rng.uniform(0.11, 0.15))]


DRAWERS: tuple[LesionDrawer, ...] = (
    draw_consolidation,
    draw_nodules,
    draw_reticulation,
    draw_fluid,
    draw_pleural_air,
)
"""How each pattern of `findings.PATTERNS` is drawn, in that order."""
