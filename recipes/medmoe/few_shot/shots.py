"""Draws a few labelled studies of each class."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def draw_shots(classes: NDArray[np.int64], groups: Sequence[str], shots: int, seed: int) -> NDArray[np.int64]:
    """Draws ``shots`` studies of each class, of different groups (patients) as long as there are any.

    A class with fewer studies gives all that it has. More shots of a seed hold its fewer shots, so that curves over the
    number of shots compare the same draws.

    Args:
        classes: Number of the class of each study, ``(N,)``; -1 where it is not known.
        groups: The group of each study.
        shots: Studies of each class.
        seed: Of the draw.

    Returns:
        Rows, ascending.

    Raises:
        ValueError: If ``shots`` is below 1.
    """
    if shots < 1:
        raise ValueError(f"shots must be at least 1, got {shots} (--shots).")
    rng = np.random.default_rng(seed)
    taken: list[int] = []
    for c in range(int(classes.max(initial=-1)) + 1):
        order = rng.permutation(np.flatnonzero(classes == c)).tolist()
        seen: set[str] = set()
        first: list[int] = []
        for row in order:
            if groups[row] not in seen:
                seen.add(groups[row])
                first.append(row)
        taken += [*first, *(row for row in order if row not in set(first))][:shots]
    return np.array(sorted(taken), dtype=np.int64)
