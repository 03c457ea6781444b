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
    return [consolidation_in(chest.lungs[rng.integers(2)], rng, anatomy, canvas)]


def consolidation_in(lung: Lung, rng: np.random.Generator, anatomy: Anatomy, canvas: Canvas) -> Field:
    """Draws the cloud of :func:`draw_consolidation` in a lung."""
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
    return strength * cloud * (mottle - 0.45 * airways) * lung.clear


def nodule_places(rng: np.random.Generator, anatomy: Anatomy, count: int) -> list[tuple[float, float]]:
    """Draws places ``(u, v)`` in clear lung above its base, in either lung and no two closer than 0.07."""
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
    return [nodule_at(place, rng, canvas) for place in nodule_places(rng, anatomy, count)]


def nodule_at(place: tuple[float, float], rng: np.random.Generator, canvas: Canvas) -> Field:
    """Draws a small bright disc with a sharp edge at ``(u, v)``."""
    u, v = place
    radius = canvas.width(rng.uniform(0.014, 0.022), 1.1)
    distance = np.sqrt((canvas.u - np.float32(u)) ** 2 + (canvas.v - np.float32(v)) ** 2)
    return rng.uniform(0.20, 0.34) * soft_step(radius - distance, canvas.width(0.012, 1.2))


def draw_reticulation(rng: np.random.Generator, anatomy: Anatomy, canvas: Canvas, chest: Chest) -> Lesions:
    """Draws a net of fine lines over the middle and lower zones of both lungs, denser towards the base."""
    del anatomy
    net = draw_net(rng, canvas)
    return [net * net_zone(lung, rng, canvas) for lung in chest.lungs]


def draw_net(rng: np.random.Generator, canvas: Canvas) -> Field:
    """Draws a net of fine bright lines over the whole image."""
    # The zero lines of smooth noise form closed meshes; two layers give them crossings.
    net = np.zeros_like(canvas.v)
    for cells in (20, 27):
        net += ridge(smooth_noise(rng, canvas.size, cells), 0.75)
    return rng.uniform(0.09, 0.17) * net


def net_zone(lung: Lung, rng: np.random.Generator, canvas: Canvas) -> Field:
    """Draws where a lung shows the net, 0 to 1: its middle and lower zones."""
    return soft_step(canvas.v - rng.uniform(0.34, 0.46), 0.22) * lung.clear


def fluid_in(lung: Lung, rng: np.random.Generator, anatomy: Anatomy, canvas: Canvas) -> Field:
    """Draws the fluid of :func:`draw_fluid` in a lung."""
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
    return [fluid_in(chest.lungs[side], rng, anatomy, canvas) for side in sides]


def draw_pleural_air(rng: np.random.Generator, anatomy: Anatomy, canvas: Canvas, chest: Chest) -> Lesions:
    """Draws a dark rim without vessels around the apex and the outer side of one lung, and the pleura's line."""
    return [pleural_air_in(chest.lungs[rng.integers(2)], rng, anatomy, canvas)]


def pleural_air_in(lung: Lung, rng: np.random.Generator, anatomy: Anatomy, canvas: Canvas) -> Field:
    """Draws the rim of :func:`draw_pleural_air` in a lung."""
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
    return rng.uniform(0.13, 0.20) * line - rim * (lung.vessels + rng.uniform(0.11, 0.15))


DRAWERS: tuple[LesionDrawer, ...] = (
    draw_consolidation,
    draw_nodules,
    draw_reticulation,
    draw_fluid,
    draw_pleural_air,
)
"""How each pattern of `findings.PATTERNS` is drawn, in that order."""
