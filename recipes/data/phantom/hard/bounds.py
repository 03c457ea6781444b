"""The best possible AUROCs of the harder phantom, by enumeration of its latents."""

import itertools
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from recipes.data.phantom.hard.findings import CLASSES, PATTERNS, PLACES, labels_of


class BestAurocs(NamedTuple):
    """Best AUROCs, by what is known of a study.

    Attributes:
        image: The pattern at each place.
        note: The circumstance and the place that the note names.
        without_places: How often the image shows each pattern, and the note, but not what lies where.
    """

    image: float
    note: float
    without_places: float


@lru_cache
def best_aurocs(num_contexts: int, classes: tuple[str, ...] = CLASSES) -> BestAurocs:
    """Computes the best macro AUROCs for ``C`` circumstances.

    The latents have ``P**Z * C * Z`` states (256 images, with 4 ``C`` notes each), all equally likely. No score of a
    class has a better ROC curve than its posterior given what is known (Neyman-Pearson), which is a mean over the
    states that agree with it.

    Args:
        num_contexts: ``C``.
        classes: Findings of which the mean is taken.
    """
    images = np.array(list(itertools.product(range(len(PATTERNS)), repeat=len(PLACES))))
    notes = np.array(list(itertools.product(range(num_contexts), range(len(PLACES)))))
    of_image, of_note = (each.ravel() for each in np.meshgrid(range(len(images)), range(len(notes)), indexing="ij"))
    labels = labels_of(images[of_image], notes[of_note, 0], notes[of_note, 1])
    counts = np.unique(np.sort(images, axis=1), axis=0, return_inverse=True)[1].ravel()
    without_places = counts[of_image] * num_contexts + notes[of_note, 0]
    aurocs = [
        float(np.mean([_best_auroc(labels[:, CLASSES.index(name)], known) for name in classes]))
        for known in (of_image, of_note, without_places)
    ]
    return BestAurocs(*aurocs)


def _best_auroc(positive: NDArray[np.float32], known: NDArray[np.int64]) -> float:
    """Computes the AUROC of the posterior by what is known of each state, ties counting half."""
    positives = np.bincount(known, positive)
    negatives = np.bincount(known, 1 - positive)
    posterior, same = np.unique(np.round(positives / (positives + negatives), 12), return_inverse=True)
    positives = np.bincount(same.ravel(), positives, len(posterior))
    negatives = np.bincount(same.ravel(), negatives, len(posterior))
    below = np.cumsum(negatives) - negatives / 2
    return float(positives @ below / (positives.sum() * negatives.sum()))
