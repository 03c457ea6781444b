"""Whether routing depends on the input: the mutual information of experts and labels, above its permutation null."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


def routing_information(
    usage: ArrayLike, labels: ArrayLike, groups: Sequence[str], *, permutations: int = 200, seed: int = 0
) -> dict[str, Any]:
    """Estimates the mutual information of the expert of a slot with the study's labels, and its null.

    The plug-in estimate ``sum p(y, e) ln(p(y, e) / (p(y) p(e)))`` is above 0 by chance. So whole label vectors are
    permuted, those of a patient staying together, and the estimate is compared with those.

    Args:
        usage: Share of each study's routed slots at each expert, ``(N, E)``.
        labels: ``(N, C)``: 1, 0 or NaN. Studies count as alike where all labels are.
        groups: Patient of each study.
        permutations: How many.
        seed: Of the permutations.

    Returns:
        ``nats``, ``null_95`` (95th percentile of the permuted estimates) and ``p`` (share of them at least as large,
        the estimate itself counted).

    Raises:
        ValueError: If there are not as many labels and groups as studies, or there is no study.
    """
    shares, truth = np.asarray(usage, np.float64), np.asarray(labels, np.float64)
    if not len(shares) or len(truth) != len(shares) or len(groups) != len(shares):
        raise ValueError(
            f"usage, labels and groups must be of the same studies, at least one, got {len(shares)}, {len(truth)} and "
            f"{len(groups)}."
        )
    kinds = np.unique(np.nan_to_num(truth, nan=-1.0), axis=0, return_inverse=True)[1].ravel()
    names = np.unique(np.asarray(groups), return_inverse=True)[1].ravel()
    by_patient = np.argsort(names, kind="stable")
    shares, kinds, names = shares[by_patient], kinds[by_patient], names[by_patient]
    blocks = np.split(kinds, np.flatnonzero(np.diff(names)) + 1)
    rng = np.random.default_rng(seed)
    value = _information(shares, kinds)
    null = np.array(
        [
            _information(shares, np.concatenate([blocks[i] for i in rng.permutation(len(blocks))]))
            for _ in range(permutations)
        ]
    )
    return {
        "nats": value,
        "null_95": float(np.quantile(null, 0.95)) if permutations else None,
        "p": float((1 + (null >= value - 1e-12).sum()) / (1 + permutations)),
    }


def _information(shares: NDArray[np.float64], kinds: NDArray[np.int64]) -> float:
    joint = np.zeros((int(kinds.max()) + 1, shares.shape[1]))
    np.add.at(joint, kinds, shares)
    joint /= joint.sum()
    expected = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    used = joint > 0
    return float((joint[used] * np.log(joint[used] / expected[used])).sum())
