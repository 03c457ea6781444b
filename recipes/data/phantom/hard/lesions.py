"""How each pattern changes one lung: the drawings of the easier edition on a side of choice, and a cavity."""

from collections.abc import Callable

import numpy as np

from recipes.data.phantom.chest import lesions
from recipes.data.phantom.chest.anatomy import Anatomy, Canvas, Chest, Lung
from recipes.data.phantom.chest.lesions import LesionDrawer, Lesions
from recipes.data.phantom.fields import Field, ridge, soft_step

SideDrawer = Callable[[Lung, np.random.Generator, Anatomy, Canvas], list[Field]]


def _consolidation(lung: Lung, rng: np.random.Generator, anatomy: Anatomy, canvas: Canvas) -> Lesions:
    return [lesions.consolidation_in(lung, rng, anatomy, canvas)]


def _nodules(lung: Lung, rng: np.random.Generator, anatomy: Anatomy, canvas: Canvas) -> Lesions:
    """Draws three to five small bright discs."""
    places = lesions.nodule_places(rng, anatomy, int(rng.integers(3, 6)), side=lung.side)
    return [lesions.nodule_at(place, rng, canvas) for place in places]


def _reticulation(lung: Lung, rng: np.random.Generator, anatomy: Anatomy, canvas: Canvas) -> Lesions:
    del anatomy
    return [lesions.draw_net(rng, canvas) * lesions.net_zone(lung, rng, canvas)]


def _fluid(lung: Lung, rng: np.random.Generator, anatomy: Anatomy, canvas: Canvas) -> Lesions:
    return [lesions.fluid_in(lung, rng, anatomy, canvas)]


def _pleural_air(lung: Lung, rng: np.random.Generator, anatomy: Anatomy, canvas: Canvas) -> Lesions:
    return [lesions.pleural_air_in(lung, rng, anatomy, canvas)]


def _cavity(lung: Lung, rng: np.random.Generator, anatomy: Anatomy, canvas: Canvas) -> Lesions:
    """Draws a ring with a dark middle, larger than a nodule."""
    (place,) = lesions.nodule_places(rng, anatomy, 1, side=lung.side)
    radius, wall = rng.uniform(0.040, 0.060), canvas.width(0.030, 2.4)
    distance = np.sqrt((canvas.u - np.float32(place[0])) ** 2 + (canvas.v - np.float32(place[1])) ** 2)
    ring = rng.uniform(0.22, 0.34) * ridge(distance - np.float32(radius), wall)
    return [ring - 0.06 * soft_step(np.float32(radius - wall / 2) - distance, canvas.width(0.02, 1.5))]


def _on_side(draw: SideDrawer, side: int) -> LesionDrawer:
    def drawer(rng: np.random.Generator, anatomy: Anatomy, canvas: Canvas, chest: Chest) -> Lesions:
        return draw(chest.lungs[side], rng, anatomy, canvas)

    return drawer


_DRAWERS: tuple[SideDrawer, ...] = (_consolidation, _nodules, _reticulation, _fluid, _pleural_air, _cavity)

DRAWERS: tuple[LesionDrawer, ...] = tuple(_on_side(draw, side) for draw in _DRAWERS for side in range(2))
"""How each pattern of `findings.PATTERNS` is drawn on each side: ``(pattern, side)``, sides fastest."""
