"""Brings scores to scale by those of training images, expert by expert."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

FEWEST = 16
"""Images of one expert from which its own scale is taken; with fewer it is that of all experts."""


class Scale(NamedTuple):
    """Mean and standard deviation of a score over training images, for each expert and column: ``(K, C)`` each."""

    mean: NDArray[np.float64]
    spread: NDArray[np.float64]

    def of(self, scores: NDArray[np.float64], experts: Sequence[int]) -> NDArray[np.float64]:
        """Brings scores ``(N, C)`` to scale, each image by the scale of its expert."""
        rows = np.asarray(experts)
        return (scores - self.mean[rows]) / self.spread[rows]


def scale_of(scores: NDArray[np.float64], experts: NDArray[np.int64], num_experts: int) -> Scale:
    """Computes the scale of scores ``(n, C)`` of the reference images; of an expert with few images that of all."""
    mean, spread = [], []
    for expert in range(num_experts):
        own = scores[experts == expert]
        rows = own if len(own) >= FEWEST else scores
        mean.append(rows.mean(axis=0))
        spread.append(np.maximum(rows.std(axis=0), 1e-9))
    return Scale(np.stack(mean), np.stack(spread))
