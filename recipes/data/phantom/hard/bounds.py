"""The best possible AUROCs of the harder phantom, by enumeration of its latents."""

import itertools
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from recipes.data.phantom.hard.findings import VISIBLE_PROBABILITY


class BestAurocs(NamedTuple):
    """Best AUROC of a class, the same for all of them, by what is known.

    Attributes:
        image: What each side shows.
        note: The circumstance of each side.
        without_sides: How many sides show each pattern, and both circumstances, but not which side they belong to.
    """

    image: float
    note: float
    without_sides: float


@lru_cache
def best_aurocs(num_contexts: int) -> BestAurocs:
    """Computes the best AUROCs for ``C`` circumstances.

    One class has ``K = C / 2`` pairs of a pattern and a circumstance. Only these patterns, and for each side which of
    these circumstances holds (or none of them), bear on it, so the latents that matter have
    ``2**(2K) * (K + 1)**2`` states. No score has a better ROC curve than the posterior of what is known
    (Neyman-Pearson), which is a sum over the states that agree with it.

    Args:
        num_contexts: ``C``, even.
    """
    pairs = num_contexts // 2
    shows = np.array(list(itertools.product((0, 1), repeat=2 * pairs))).reshape(-1, pairs, 2)
    circumstances = np.array(list(itertools.product(range(pairs + 1), repeat=2)))  # the last: none of the class
    odds = np.array([1.0] * pairs + [float(num_contexts - pairs)]) / num_contexts
    q = VISIBLE_PROBABILITY
    weight = np.where(shows, q, 1 - q).prod(axis=(1, 2))[:, None] * odds[circumstances].prod(axis=1)

    padded = np.concatenate([shows, np.zeros_like(shows[:, :1])], axis=1)
    hits = padded[:, circumstances[:, 0], 0] | padded[:, circumstances[:, 1], 1]
    of_image, of_note = np.meshgrid(np.arange(len(shows)), np.arange(len(circumstances)), indexing="ij")
    counts = np.unique(shows.sum(axis=2), axis=0, return_inverse=True)[1].ravel()
    unordered = np.unique(np.sort(circumstances, axis=1), axis=0, return_inverse=True)[1].ravel()
    no_sides = counts[of_image] * (unordered.max() + 1) + unordered[of_note]
    aurocs = [_best_auroc(weight.ravel(), hits.ravel(), known.ravel()) for known in (of_image, of_note, no_sides)]
    return BestAurocs(*aurocs)


def _best_auroc(weight: NDArray[np.float64], positive: NDArray[np.int64], known: NDArray[np.int64]) -> float:
    """Computes the AUROC of the posterior by what is known of each state, ties counting half."""
    positives = np.bincount(known, weight * positive)
    negatives = np.bincount(known, weight * (1 - positive))
    posterior, same = np.unique(np.round(positives / (positives + negatives), 12), return_inverse=True)
    positives = np.bincount(same.ravel(), positives, len(posterior))
    negatives = np.bincount(same.ravel(), negatives, len(posterior))
    below = np.cumsum(negatives) - negatives / 2
    return float(positives @ below / (positives.sum() * negatives.sum()))
