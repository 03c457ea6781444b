"""From a word map to a region, and how well the region fits a known one.

A map is brought to the range from 0 to 1 (its lowest and highest cell), enlarged to the picture, cut at a threshold.
Letters: S side of the square picture, h and w the map.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from recipes.data.studies import Box
from recipes.shared.scores.bootstrap import bootstrap_mean, percentile_interval

THRESHOLDS = tuple(round(0.05 * step, 2) for step in range(1, 20))
"""Among which one is chosen: 0.05 to 0.95."""


class Overlap(NamedTuple):
    """How a region fits the known one. Without any pixel in either, both scores are 1.

    Attributes:
        iou: Pixels of both over pixels of either.
        dice: Twice the pixels of both over the sum of the two numbers of pixels.
        random_dice: Dice expected of a region of this size at a random place: ``2ab / (a + b)`` with the two shares.
        whole_dice: Dice of the whole picture taken as the region.
    """

    iou: float
    dice: float
    random_dice: float
    whole_dice: float


def enlarged(word_map: NDArray[np.floating], size: int) -> NDArray[np.float32]:
    """Brings a map to the range 0 to 1 and enlarges it bilinearly; an even map becomes 0 everywhere.

    Args:
        word_map: ``(h, w)``, finite.
        size: S.

    Returns:
        ``(S, S)``.

    Raises:
        ValueError: If the map is not 2-D or not finite.
    """
    values = np.asarray(word_map, np.float32)
    if values.ndim != 2 or not np.isfinite(values).all():
        raise ValueError(f"word_map must have shape (h, w) and be finite, got shape {values.shape}.")
    low, high = float(values.min()), float(values.max())
    scaled = (values - low) / (high - low) if high > low else np.zeros_like(values)
    return np.asarray(Image.fromarray(scaled).resize((size, size), Image.Resampling.BILINEAR)).clip(0, 1)


def box_region(boxes: Sequence[Box], size: int) -> NDArray[np.bool_]:
    """Returns the pixels ``(S, S)`` whose centre lies in a box."""
    centres = np.arange(size) + 0.5
    inside = np.zeros((size, size), bool)
    for box in boxes:
        rows, columns = (box.y0 <= centres) & (centres < box.y1), (box.x0 <= centres) & (centres < box.x1)
        inside |= rows[:, None] & columns[None, :]
    return inside


def overlap(region: NDArray[np.bool_], known: NDArray[np.bool_]) -> Overlap:
    """Compares a region with the known one, both ``(S, S)``."""
    both, one, other = float((region & known).mean()), float(region.mean()), float(known.mean())
    either = one + other - both
    return Overlap(
        both / either if either else 1.0,
        2 * both / (one + other) if either else 1.0,
        2 * one * other / (one + other) if either else 1.0,
        2 * other / (1 + other),
    )


def best_threshold(maps: Sequence[NDArray[np.float32]], known: Sequence[NDArray[np.bool_]]) -> float:
    """Returns the threshold of the highest mean Dice over enlarged maps and known regions; of equal ones the lowest.

    Raises:
        ValueError: If there is no pair.
    """
    if not maps:
        raise ValueError("maps must hold at least one map to choose a threshold by, got none: give one (--threshold).")
    dice = [np.mean([overlap(m >= t, k).dice for m, k in zip(maps, known, strict=True)]) for t in THRESHOLDS]
    return THRESHOLDS[int(np.argmax(dice))]


def summarise(
    findings: Sequence[str], groups: Sequence[str], overlaps: Sequence[Overlap], *, bootstrap: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """Computes means over regions, with intervals over resampled groups (patients).

    Args:
        findings: The finding of each region, at least one.
        groups: The patient of each.
        overlaps: How each fits.
        bootstrap: Resamples; 0 for no intervals.
        seed: Of the resampling.

    Returns:
        ``dice``, ``iou`` with ``dice_ci95`` and ``iou_ci95``, ``random_dice``, ``whole_dice``, ``regions``, ``groups``
        and ``per_finding``: name to the same.
    """

    def means(rows: list[int]) -> dict[str, Any]:
        codes = np.unique([groups[row] for row in rows], return_inverse=True)[1]
        values = np.array([overlaps[row] for row in rows], np.float64)
        spread = bootstrap_mean(values[:, :2], codes, samples=bootstrap, seed=seed)
        result: dict[str, Any] = {name: float(values[:, c].mean()) for c, name in enumerate(Overlap._fields)}
        for c, name in enumerate(("iou", "dice")):
            result[f"{name}_ci95"] = percentile_interval(spread[:, c], 0.95)
        return result | {"regions": len(rows), "groups": int(codes.max()) + 1}

    names = sorted(set(findings))
    own = {name: [row for row, finding in enumerate(findings) if finding == name] for name in names}
    return means(list(range(len(findings)))) | {"per_finding": {name: means(rows) for name, rows in own.items()}}
