"""Small parts of a training set: whole groups, the classes in their proportions, every class present."""

import numpy as np
from numpy.typing import ArrayLike, NDArray


def draw_subset(labels: ArrayLike, groups: list[str], fraction: float, seed: int) -> NDArray[np.int64]:
    """Draws a share of the studies.

    Groups (patients) are drawn whole and in random order, as long as they fit into every class's quota, which is
    its share of ``fraction`` and at least one study. A class that is left without any then gets the first group
    that has it, so a subset of large groups may exceed its share.

    Args:
        labels: Shape ``(N, C)``: 1, 0 or NaN. Studies of no class form a stratum of their own.
        groups: The group of each study, length ``N``.
        fraction: In ``(0, 1]``; 1 takes all.
        seed: Of the order.

    Returns:
        Rows, ascending.

    Raises:
        ValueError: If ``fraction`` is out of range or the lengths differ.
    """
    truth = np.asarray(labels, np.float64)
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must lie in (0, 1], got {fraction}.")
    if truth.ndim != 2 or len(truth) != len(groups):
        raise ValueError(
            f"labels must have shape (studies, classes) with one of {len(groups)} groups per study, got {truth.shape}."
        )
    if fraction == 1:
        return np.arange(len(truth))
    positive = truth == 1
    strata = np.column_stack([positive, ~positive.any(axis=1)])
    codes = np.unique(np.asarray(groups, dtype=str), return_inverse=True)[1]
    counts = np.zeros((codes.max() + 1, strata.shape[1]), dtype=np.int64)
    np.add.at(counts, codes, strata.astype(np.int64))
    total = counts.sum(axis=0)
    quota = np.where(total > 0, np.maximum(1, np.rint(fraction * total)), 0)
    taken = _take(counts, quota, np.random.default_rng(seed).permutation(len(counts)))
    return np.flatnonzero(taken[codes])


def _take(counts: NDArray[np.int64], quota: NDArray[np.float64], order: NDArray[np.int64]) -> NDArray[np.bool_]:
    taken = np.zeros(len(counts), dtype=bool)
    have = np.zeros(counts.shape[1])
    for group in order:
        if (have + counts[group] <= quota).all():
            taken[group] = True
            have += counts[group]
    for stratum in np.flatnonzero((have == 0) & (quota > 0)):
        if have[stratum] == 0:
            group = next(group for group in order if counts[group, stratum])
            taken[group] = True
            have += counts[group]
    return taken
