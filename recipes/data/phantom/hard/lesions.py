"""How each pattern of the harder edition is drawn at each place."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from recipes.data.phantom.chest.anatomy import Anatomy, Canvas, Chest, Lung
from recipes.data.phantom.chest.lesions import LesionDrawer, Lesions, draw_net
from recipes.data.phantom.fields import Field, ridge, smooth_noise, soft_step
from recipes.data.phantom.hard.findings import PLACES

_CENTRES = {(0, 0): (0.205, 0.34), (0, 1): (0.235, 0.60), (1, 0): (0.205, 0.34), (1, 1): (0.265, 0.60)}
"""Distance from the midline and height of each place's middle; the heart takes room of the lower left one."""

_JITTER = 0.02


class Spot(NamedTuple):
    """Where a pattern is drawn: a lung, and a point in it."""

    lung: Lung
    d: float
    v: float

    def distance(self, canvas: Canvas, along: float = 0.0, angle: float = 0.0) -> Field:
        """Computes the distance of every pixel from the point, or from one ``along`` away from it at an angle."""
        d, v = self.d + along * np.cos(angle), self.v + along * np.sin(angle)
        return np.sqrt((self.lung.d - np.float32(d)) ** 2 + (canvas.v - np.float32(v)) ** 2)


SpotDrawer = Callable[[Spot, np.random.Generator, Canvas], Field]


def _consolidation(spot: Spot, rng: np.random.Generator, canvas: Canvas) -> Field:
    """Draws a mottled cloud."""
    radius, strength = rng.uniform(0.081, 0.101), rng.uniform(0.22, 0.34)
    across = spot.distance(canvas) / np.float32(radius)
    cloud = soft_step(1.0 - across * across + 0.30 * smooth_noise(rng, canvas.size, 10) - 0.1, 0.9)
    return strength * cloud * (1.0 + 0.20 * smooth_noise(rng, canvas.size, 20))


def _nodules(spot: Spot, rng: np.random.Generator, canvas: Canvas) -> Field:
    """Draws three or four small bright discs around the point."""
    first, count = rng.uniform(0.0, 6.3), int(rng.integers(3, 5))
    nodules = np.zeros_like(canvas.v)
    for turn in range(count):
        distance = spot.distance(canvas, rng.uniform(0.047, 0.074), first + 2 * np.pi * turn / count)
        radius = canvas.width(rng.uniform(0.0175, 0.024), 1.1)
        nodules += rng.uniform(0.24, 0.36) * soft_step(radius - distance, canvas.width(0.015, 1.2))
    return nodules


def _reticulation(spot: Spot, rng: np.random.Generator, canvas: Canvas) -> Field:
    """Draws a round piece of a net of fine lines."""
    return 1.5 * draw_net(rng, canvas) * soft_step(rng.uniform(0.092, 0.108) - spot.distance(canvas), 0.04)


def _cavity(spot: Spot, rng: np.random.Generator, canvas: Canvas) -> Field:
    """Draws a ring with a dark middle."""
    radius, wall = rng.uniform(0.061, 0.081), canvas.width(0.035, 2.4)
    distance = spot.distance(canvas)
    ring = rng.uniform(0.24, 0.36) * ridge(distance - np.float32(radius), wall)
    return ring - 0.06 * soft_step(np.float32(radius - wall / 2) - distance, canvas.width(0.027, 1.5))


def _at(place: tuple[int, int], draw: SpotDrawer) -> LesionDrawer:
    def drawer(rng: np.random.Generator, anatomy: Anatomy, canvas: Canvas, chest: Chest) -> Lesions:
        del anatomy
        d, v = (centre + rng.uniform(-_JITTER, _JITTER) for centre in _CENTRES[place])
        return [draw(Spot(chest.lungs[place[0]], d, v), rng, canvas)]

    return drawer


_DRAWERS: tuple[SpotDrawer, ...] = (_consolidation, _nodules, _reticulation, _cavity)

DRAWERS: tuple[LesionDrawer, ...] = tuple(_at(place, draw) for place in PLACES for draw in _DRAWERS)
"""How each pattern of `findings.PATTERNS` is drawn at each of `findings.PLACES`, patterns fastest."""
