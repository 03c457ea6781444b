"""The pointing game: does the place where a map is highest lie inside a box of the finding?

Zhang et al. 2016 (Top-down Neural Attention by Excitation Backprop, section 4.1) count a hit where the pixel of
a map's maximum lies in the object. Deviations:

- The pixel is the **centre of the best cell**. A bilinearly enlarged map has its maximum within half a pixel of
  it, except for cells at the border, where enlarging repeats the edge and the maximum is a whole strip.
- Cells that tie for the best share the hit: the score is the share of them inside a box, what choosing one at
  random would score on average. An even map thus scores what chance does, not what the first cell does.
- The tolerance (15 pixels in the paper, for objects in photographs) is 0 by default. One that is asked for
  widens the boxes for the map and for both baselines alike.

Everything is in pixels of the square, letter-boxed image that the encoder saw: ``x`` to the right, ``y`` down.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from recipes.data.studies import Box
from recipes.shared.scores.bootstrap import bootstrap_mean, percentile_interval

CONFIDENCE = 0.95

BASELINES = ("center", "absent", "fixed")
"""What the hit rate is compared with round by round."""


class Pointing(NamedTuple):
    """One round of the game: one finding of one study.

    Attributes:
        finding: Its name.
        group: The study's patient.
        hit: 1 where the map's maximum lies in a box, 0 where not, between them for ties.
        center: The same for the centre of the image.
        random: The same for a pixel drawn at random: the share of the image that the boxes cover.
        reachable: 1 where some cell of the map has its centre in a box, else 0: the most that any map could score.
        absent: What the maps of absent findings score, on the mean: the same image and report with another name. NaN
            where no absent finding is known.
        fixed: What the finding's fixed place scores, the pixel that lies in most boxes of training. NaN where none is.
        findings: How many findings of the image have boxes.
    """

    finding: str
    group: str
    hit: float
    center: float
    random: float
    reachable: float = 1.0
    absent: float = math.nan
    fixed: float = math.nan
    findings: int = 1


def point(
    word_map: NDArray[np.floating], boxes: Sequence[Box], size: int, *, group: str, tolerance: float = 0.0
) -> Pointing:
    """Plays one round.

    Args:
        word_map: Shape ``(h, w)``, laid over the whole image.
        boxes: Boxes of one finding, in pixels of the image; any of them counts.
        size: Side of the square image in pixels.
        group: The study's patient.
        tolerance: Pixels by which the boxes are widened on every side.

    Raises:
        ValueError: If the map is not 2-D or not finite, there is no box, the boxes are of several findings, or
            ``tolerance`` is negative.
    """
    findings = sorted({box.finding for box in boxes})
    if len(findings) != 1:
        raise ValueError(f"boxes must be of exactly one finding, got {findings or 'none'}.")
    if tolerance < 0:
        raise ValueError(f"tolerance must be a number of pixels of at least 0, got {tolerance}.")
    wide = [
        Box(box.finding, box.x0 - tolerance, box.y0 - tolerance, box.x1 + tolerance, box.y1 + tolerance)
        for box in boxes
    ]
    hits = [_inside(x, y, wide) for x, y in best_points(word_map, size)]
    pixels = np.arange(size) + 0.5
    covered = np.zeros((size, size), bool)
    for box in wide:
        columns, rows = (box.x0 <= pixels) & (pixels < box.x1), (box.y0 <= pixels) & (pixels < box.y1)
        covered |= rows[:, None] & columns[None, :]
    return Pointing(
        finding=findings[0],
        group=group,
        hit=float(np.mean(hits)),
        center=float(_inside(size / 2, size / 2, wide)),
        random=float(covered.mean()),
        reachable=float(any(_inside(x, y, wide) for x, y in best_points(np.zeros_like(word_map), size))),
    )


def best_points(word_map: NDArray[np.floating], size: int) -> list[tuple[float, float]]:
    """Returns the centres of the cells that share a map's highest value.

    Args:
        word_map: Shape ``(h, w)``, laid over the whole image.
        size: Side of the square image in pixels.

    Returns:
        ``(x, y)`` of each, in pixels.

    Raises:
        ValueError: If the map is not 2-D, is empty or holds a value that is not finite.
    """
    values = np.asarray(word_map)
    if values.ndim != 2 or values.size == 0:
        raise ValueError(f"word_map must have shape (h, w), got {values.shape}.")
    if not np.isfinite(values).all():
        raise ValueError("word_map must be finite, but a cell is not: check the model for overflow.")
    rows, columns = np.nonzero(values == values.max())
    height, width = values.shape
    return [((c + 0.5) * size / width, (r + 0.5) * size / height) for r, c in zip(rows, columns, strict=True)]


def summarise(rounds: Sequence[Pointing], *, bootstrap: int = 1000, seed: int = 0) -> dict[str, Any]:
    """Computes means over rounds, with intervals over resampled groups (patients).

    Args:
        rounds: All rounds, at least one.
        bootstrap: Number of resamples; 0 for no intervals.
        seed: Seed of the resampling.

    Returns:
        ``hit_rate``, ``hit_rate_ci95``, ``center_baseline``, ``random_baseline``, ``absent_baseline`` and
        ``fixed_baseline`` (``None`` where there is none), ``reachable`` (the highest rate that maps of this resolution
        could have), ``rounds``, ``groups``; ``above_center_ci95``, ``above_absent_ci95`` and ``above_fixed_ci95`` (of
        the hit rate less the baseline, round by round); ``per_finding``: name to the same; ``several_findings``: the
        same of the rounds on images with two findings and more, ``None`` without any.

    Raises:
        ValueError: If there is no round or ``bootstrap`` is negative.
    """
    if not rounds:
        raise ValueError("rounds must hold at least one round of the game, got none.")
    if bootstrap < 0:
        raise ValueError(f"bootstrap must be 0 (no intervals) or a number of resamples, got {bootstrap}.")
    names = sorted({one.finding for one in rounds})
    several = [one for one in rounds if one.findings > 1]
    return _means(rounds, bootstrap, seed) | {
        "per_finding": {
            name: _means([one for one in rounds if one.finding == name], bootstrap, seed) for name in names
        },
        "several_findings": _means(several, bootstrap, seed) if several else None,
        "bootstrap": {"samples": bootstrap, "seed": seed},
    }


def _means(rounds: Sequence[Pointing], bootstrap: int, seed: int) -> dict[str, Any]:
    hits = np.array([one.hit for one in rounds])
    baselines = {name: np.array([getattr(one, name) for one in rounds], np.float64) for name in BASELINES}
    return {
        "hit_rate": float(hits.mean()),
        "hit_rate_ci95": _interval(hits, rounds, bootstrap, seed),
        "center_baseline": float(baselines["center"].mean()),
        "random_baseline": float(np.mean([one.random for one in rounds])),
        "absent_baseline": _known_mean(baselines["absent"]),
        "fixed_baseline": _known_mean(baselines["fixed"]),
        "reachable": float(np.mean([one.reachable for one in rounds])),
        "rounds": len(rounds),
        "groups": len({one.group for one in rounds}),
        **{
            f"above_{name}_ci95": _interval(hits - values, rounds, bootstrap, seed)
            for name, values in baselines.items()
        },
    }


def _known_mean(values: NDArray[np.float64]) -> float | None:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else None


def _interval(values: NDArray[np.float64], rounds: Sequence[Pointing], bootstrap: int, seed: int) -> list[float] | None:
    """Computes the interval of the mean of the known values over resampled groups; ``None`` where none is known."""
    if np.isnan(values).all():
        return None
    codes = np.unique([one.group for one in rounds], return_inverse=True)[1]
    means = bootstrap_mean(values, codes, samples=bootstrap, seed=seed)
    return percentile_interval(means, CONFIDENCE)


def _inside(x: float, y: float, boxes: Sequence[Box]) -> bool:
    return any(box.x0 <= x < box.x1 and box.y0 <= y < box.y1 for box in boxes)
