"""The normal chest: a patient's anatomy, and the fields it is drawn as.

Places are in the patient's frame: ``u`` to the right and ``v`` down over the unit square, the midline
at ``u = 0.5``. Side -1 is the image's left (the patient's right), side +1 the image's right, and
``d = side * (u - 0.5)`` is the distance from the midline on one side.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from recipes.data.phantom.fields import Field, ridge, smooth_noise, soft_step

SIDES = (-1, 1)


@dataclass(frozen=True)
class Anatomy:
    """What stays the same over a patient's studies; lengths are fractions of the image's side."""

    body_half: float
    neck_half: float
    shoulder_v: float
    lung_d: float
    lung_half: float
    lung_v: float
    lung_height: float
    dome_v: tuple[float, float]
    dome_drop: float
    heart: tuple[float, float, float, float]
    heart_tilt: float
    mediastinum_half: float
    knob: tuple[float, float, float]
    rib_spacing: float
    rib_phase: tuple[float, float]
    rib_slope: float
    rib_density: float
    clavicle_v: float
    clavicle_slope: float
    vessel_phase: tuple[float, float]
    vessel_density: float


def draw_anatomy(rng: np.random.Generator) -> Anatomy:
    """Draws a patient."""
    u = rng.uniform
    dome = u(0.73, 0.78)
    return Anatomy(
        body_half=u(0.43, 0.48),
        neck_half=u(0.10, 0.14),
        shoulder_v=u(0.15, 0.20),
        lung_d=u(0.195, 0.210),
        lung_half=u(0.140, 0.158),
        lung_v=u(0.58, 0.63),
        lung_height=u(0.46, 0.50),
        dome_v=(dome, dome + u(0.01, 0.035)),
        dome_drop=u(0.06, 0.10),
        heart=(u(0.535, 0.57), u(0.63, 0.68), u(0.135, 0.175), u(0.11, 0.14)),
        heart_tilt=u(0.2, 0.6),
        mediastinum_half=u(0.055, 0.075),
        knob=(u(0.55, 0.57), u(0.33, 0.37), u(0.035, 0.048)),
        rib_spacing=u(0.076, 0.092),
        rib_phase=(u(0.0, 1.0), u(0.0, 1.0)),
        rib_slope=u(0.25, 0.45),
        rib_density=u(0.05, 0.09),
        clavicle_v=u(0.20, 0.235),
        clavicle_slope=u(0.15, 0.32),
        vessel_phase=(u(0.0, 6.3), u(0.0, 6.3)),
        vessel_density=u(0.07, 0.12),
    )


@dataclass(frozen=True)
class Canvas:
    """The patient's frame over the image's pixels.

    Attributes:
        u: Shape ``(size, size)``.
        v: Shape ``(size, size)``.
        size: Side of the image in pixels.
    """

    u: Field
    v: Field
    size: int

    def width(self, fraction: float, pixels: float) -> float:
        """Returns a width of ``fraction`` of the side, but never narrower than ``pixels``."""
        return max(fraction, pixels / self.size)


@lru_cache(maxsize=8)
def _pixel_axis(size: int) -> Field:
    return ((np.arange(size) + 0.5) / size - 0.5).astype(np.float32)


def draw_canvas(rng: np.random.Generator, size: int) -> Canvas:
    """Draws how the patient stands before the detector: shift, turn and distance."""
    angle, zoom = rng.uniform(-0.06, 0.06), rng.uniform(0.94, 1.05)
    shift_u, shift_v = rng.uniform(-0.025, 0.025, size=2)
    axis = _pixel_axis(size)
    x, y = axis[None, :] * np.float32(1 / zoom), axis[:, None] * np.float32(1 / zoom)
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return Canvas(
        u=x * cos - y * sin + np.float32(0.5 + shift_u),
        v=x * sin + y * cos + np.float32(0.5 + shift_v),
        size=size,
    )


@dataclass(frozen=True)
class Lung:
    """One lung as drawn.

    Attributes:
        side: -1 or +1.
        d: Distance from the midline on this side.
        mask: The lung down to the diaphragm, 0 to 1.
        clear: The part not hidden by heart and mediastinum, 0 to 1.
        vessels: Attenuation of its vessels.
    """

    side: int
    d: Field
    mask: Field
    clear: Field
    vessels: Field


@dataclass(frozen=True)
class Chest:
    """A normal chest as drawn: its attenuation and its two lungs."""

    attenuation: Field
    lungs: tuple[Lung, Lung]


def lung_radius(d: Field, v: Field, centre: float, half: float, middle: float, height: float) -> Field:
    """Computes the radius in a lung's outline, 1 on it: an ellipse above ``middle``, nearly straight sides below."""
    up = np.maximum(middle - v, 0.0) / height
    down = np.maximum(v - middle, 0.0)
    return np.sqrt(((d - centre) / half) ** 2 + up * up) + 0.25 * down


def heart_radius(anatomy: Anatomy, u: Field, v: Field) -> Field:
    """Computes the radius in the heart's tilted ellipse, 1 on its outline."""
    centre_u, centre_v, long, short = anatomy.heart
    cos, sin = np.float32(np.cos(anatomy.heart_tilt)), np.float32(np.sin(anatomy.heart_tilt))
    du, dv = u - centre_u, v - centre_v
    return np.sqrt(((du * cos + dv * sin) / long) ** 2 + ((dv * cos - du * sin) / short) ** 2)


def _middle(anatomy: Anatomy, canvas: Canvas) -> Field:
    """Draws heart, great vessels and the aortic knob as one mask."""
    heart = soft_step(1.0 - heart_radius(anatomy, canvas.u, canvas.v), 0.16)
    band = soft_step(anatomy.mediastinum_half - np.abs(canvas.u - 0.5), 0.025)
    knob_u, knob_v, radius = anatomy.knob
    knob = soft_step(radius - np.sqrt((canvas.u - knob_u) ** 2 + (canvas.v - knob_v) ** 2), 0.02)
    return np.maximum(np.maximum(heart, band), knob)


def _vessels(anatomy: Anatomy, canvas: Canvas, d: Field, side_index: int, mask: Field) -> Field:
    """Draws branches that radiate from the hilum, thin and fading outwards, and the hilum itself."""
    du, dv = d - np.float32(0.085), canvas.v - np.float32(0.47)
    radius = np.sqrt(du * du + dv * dv)
    angle = np.arctan2(dv, du)
    phase = anatomy.vessel_phase[side_index]
    branch = np.abs(np.sin(4.5 * angle + 18.0 * radius * np.sin(phase + 2.0 * angle) + phase))
    lines = np.maximum(1.0 - branch * (0.03 + radius) * 14.0, 0.0)
    fade = np.maximum(1.0 - radius * 3.6, 0.0)
    hilum = np.maximum(1.0 - radius * 14.0, 0.0)
    return anatomy.vessel_density * (lines * fade + 1.4 * hilum) * mask


def _draw_lung(anatomy: Anatomy, canvas: Canvas, side_index: int, middle: Field) -> Lung:
    side = SIDES[side_index]
    d = (canvas.u - np.float32(0.5)) * side
    radius = lung_radius(d, canvas.v, anatomy.lung_d, anatomy.lung_half, anatomy.lung_v, anatomy.lung_height)
    across = (d - (anatomy.lung_d - 0.02)) / anatomy.lung_half
    dome = anatomy.dome_v[side_index] + anatomy.dome_drop * across * across
    mask = soft_step(1.0 - radius, canvas.width(0.09, 9.0)) * soft_step(dome - canvas.v, canvas.width(0.02, 2.0))
    clear = mask * (1.0 - middle)
    return Lung(side, d, mask, clear, _vessels(anatomy, canvas, d, side_index, clear))


def _bones(anatomy: Anatomy, canvas: Canvas, body: Field) -> Field:
    """Draws ribs (back ones falling, front ones rising to the side), collar bones and spine."""
    distance = np.abs(canvas.u - 0.5)
    v = canvas.v
    cage = soft_step(0.37 - distance, 0.04) * soft_step(v - 0.10, 0.06) * soft_step(0.86 - v, 0.2)
    back = (v - anatomy.rib_slope * distance + 1.4 * distance * distance) / anatomy.rib_spacing
    front = (v + 0.9 * anatomy.rib_slope * distance) / (1.25 * anatomy.rib_spacing)
    bones = np.zeros_like(v)
    for phase, place, share, near in ((0, back, 1.0, 0.05), (1, front, 0.45, 0.12)):
        turn = place + anatomy.rib_phase[phase]
        from_middle = np.abs(turn - np.floor(turn) - 0.5)
        band = soft_step(0.24 - from_middle, 0.18)
        rim = ridge(from_middle - 0.22, 0.2)
        bones += share * (0.6 * band + 0.5 * rim) * soft_step(distance - near, 0.03)
    bones *= cage * anatomy.rib_density
    slope = anatomy.clavicle_v - anatomy.clavicle_slope * (distance - 0.03) + 0.5 * (distance - 0.15) ** 2
    span = soft_step(distance - 0.035, 0.02) * soft_step(0.31 - distance, 0.03)
    bones += 0.15 * soft_step(canvas.width(0.013, 1.2) - np.abs(v - slope), canvas.width(0.012, 1.2)) * span
    vertebra = 0.75 + 0.25 * np.sin(v * np.float32(105.0))
    bones += 0.10 * soft_step(0.035 - distance, 0.02) * vertebra
    return bones * body


def draw_chest(rng: np.random.Generator, anatomy: Anatomy, canvas: Canvas) -> Chest:
    """Draws the normal chest; ``rng`` gives the study's fine texture, all else is the patient's."""
    distance = np.abs(canvas.u - 0.5)
    widening = soft_step(canvas.v - anatomy.shoulder_v * 0.6, anatomy.shoulder_v)
    half = anatomy.neck_half + (anatomy.body_half - anatomy.neck_half) * widening
    body = soft_step(half - distance, 0.03)
    middle = _middle(anatomy, canvas)
    lungs = (_draw_lung(anatomy, canvas, 0, middle), _draw_lung(anatomy, canvas, 1, middle))
    air = lungs[0].mask + lungs[1].mask
    abdomen = soft_step(canvas.v - 0.80, 0.15)
    attenuation = body * (0.62 + 0.10 * abdomen) * (1.0 + 0.03 * smooth_noise(rng, canvas.size, 5))
    lung_air = air * (1.0 - 0.85 * middle)
    attenuation -= 0.40 * lung_air * (1.0 + 0.05 * smooth_noise(rng, canvas.size, 12))
    attenuation += 0.13 * middle * soft_step(canvas.v - 0.16, 0.15) * soft_step(0.74 - canvas.v, 0.2)
    trachea = soft_step(0.018 - distance, 0.014) * soft_step(0.40 - canvas.v, 0.06)
    attenuation -= 0.20 * trachea * body
    attenuation += lungs[0].vessels + lungs[1].vessels + _bones(anatomy, canvas, body)
    return Chest(attenuation, lungs)
