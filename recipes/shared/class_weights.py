"""Weights of labels for training on rare classes."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recipes.data.studies import Task


def balanced_class_weights(labels: NDArray[np.float32], task: Task) -> Tensor:
    """Weighs labels by the inverse of how often they occur, so that every class has the same sum.

    Multi-label: of the ``N_c`` known labels of class ``c``, a positive weighs ``N_c / (2 P_c)`` and a negative
    ``N_c / (2 (N_c - P_c))``. Single-label: a study of class ``c`` weighs ``N / (C' P_c)`` with ``C'`` the classes that
    occur. Weights have the mean 1 over the training split, so they change no learning rate. A class that shows one side
    only has the weight 1.

    Args:
        labels: Of the training split, ``(N, C)``: 1, 0 or NaN; one-hot for single-label tasks.
        task: Kind of the target.

    Returns:
        ``(2, C)`` float32: the weight of a label 0 and of a label 1. A single-label task reads the second row alone.
    """
    known = labels[~np.isnan(labels).any(axis=1)] if task != "multi-label" else labels
    positives, negatives = (known == 1).sum(axis=0), (known == 0).sum(axis=0)
    if task == "multi-label":
        total, both = positives + negatives, (positives > 0) & (negatives > 0)
        sides = [np.divide(total, 2 * side, out=np.ones(len(side)), where=both) for side in (negatives, positives)]
    else:
        occurring = int((positives > 0).sum())
        weights = np.divide(len(known), occurring * positives, out=np.ones(len(positives)), where=positives > 0)
        sides = [np.ones_like(weights), weights]
    return torch.from_numpy(np.stack(sides)).float()
