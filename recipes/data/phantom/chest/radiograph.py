"""One radiograph: anatomy, lesions, exposure and noise."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recipes.data.phantom.chest.anatomy import draw_anatomy, draw_canvas, draw_chest
from recipes.data.phantom.chest.lesions import DRAWERS, LesionDrawer
from recipes.data.phantom.fields import PixelBox, enclosing_box, smooth_noise


@dataclass(frozen=True)
class Radiograph:
    """A drawn image and the places of its lesions.

    Attributes:
        image: ``uint8``, shape ``(size, size)``.
        boxes: For each pattern, the boxes of its lesions; empty where it is not visible.
    """

    image: NDArray[np.uint8]
    boxes: tuple[tuple[PixelBox, ...], ...]


def draw_radiograph(
    visible: Sequence[bool] | NDArray[np.bool_],
    *,
    patient: np.random.Generator,
    acquisition: np.random.Generator,
    lesions: Sequence[np.random.Generator],
    size: int,
    drawers: Sequence[LesionDrawer] = DRAWERS,
) -> Radiograph:
    """Draws a chest with the visible patterns. Their causes are no argument.

    Brightness is ``offset + gain * (1 - exp(-k * attenuation))``: film darkens where little is in the way
    and saturates where much is.

    Args:
        visible: Whether each of the ``P`` patterns is drawn.
        patient: Stream of the anatomy; the same for all studies of a patient.
        acquisition: Stream of pose, exposure, texture and noise.
        lesions: ``P`` streams, one per pattern, so that a pattern does not move when another goes.
        size: Side of the image in pixels.
        drawers: How each of the ``P`` patterns is drawn.
    """
    anatomy = draw_anatomy(patient)
    canvas = draw_canvas(acquisition, size)
    chest = draw_chest(acquisition, anatomy, canvas)
    attenuation = chest.attenuation
    boxes: list[tuple[PixelBox, ...]] = []
    for shown, rng, draw in zip(visible, lesions, drawers, strict=True):
        changes = draw(rng, anatomy, canvas, chest) if shown else []
        for change in changes:
            attenuation = attenuation + change
        candidates = (enclosing_box(change) for change in changes)
        boxes.append(tuple(box for box in candidates if box is not None))

    k, gain, offset = acquisition.uniform((1.5, 0.98, 0.0), (2.1, 1.12, 0.05))
    brightness = np.float32(gain) * (1.0 - np.exp(np.float32(-k) * attenuation)) + np.float32(offset)
    brightness += 0.012 * smooth_noise(acquisition, size, 3)
    noise = acquisition.standard_normal((size, size), dtype=np.float32)
    brightness += np.float32(acquisition.uniform(0.010, 0.024)) * noise
    image = np.clip(np.rint(brightness * np.float32(255.0)), 0.0, 255.0).astype(np.uint8)
    return Radiograph(image, tuple(boxes))
