"""Do experts specialise in diseases? The claim of the MedVLMoE paper's Figure 3, with a test.

A disease's own expert is fitted on the validation split (one expert for each disease, no expert for two, as good as
possible in sum) and scored on the test split: the *diagonal* is the share of the routed slots of a disease's positive
studies that its own expert receives. Large shares alone show nothing. With top-2 routing none can pass 1/2; a router
that sends every study to the same experts has large shares everywhere; and the largest of E noisy shares is above 1/E.
So all of it, the assignment too, is repeated with the diseases of patients exchanged at random.

Letters: N studies, E experts, C diseases.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import linear_sum_assignment

from recipes.shared.scores.paired import holm

CLAIMED_SHARE = 0.35
"""What the paper says that the diagonal exceeds."""


class RoutedSplit(NamedTuple):
    """The routing of a split's studies.

    Attributes:
        usage: Shape ``(N, E)``, share of each study's routed slots at each expert; rows sum to 1.
        labels: Shape ``(N, C)``: 1, 0 or NaN for unknown.
        groups: The patient of each study, length ``N``.
    """

    usage: NDArray[np.float64]
    labels: NDArray[np.float64]
    groups: Sequence[str]


def expert_specialisation(
    val: RoutedSplit,
    test: RoutedSplit,
    classes: Sequence[str],
    *,
    top_k: int,
    permutations: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Assigns experts to diseases on one split, scores the assignment on another, and tests it.

    In each permutation the label vectors of patients are exchanged as a whole, among patients with the same number of
    studies and within their split, and the experts are assigned anew. A p-value is the share of the permutations, the
    data as they are among them, whose figure is at least as large.

    Args:
        val: Where the assignment is fitted.
        test: Where it is scored.
        classes: Names of the ``C`` diseases.
        top_k: Experts per routing decision, ``K``.
        permutations: How many.
        seed: Of the permutations.

    Returns:
        ``num_experts``, ``top_k``, ``highest_share`` (``1 / K``), ``uniform_share`` (``1 / E``), ``load`` (test, by
        expert), ``permutations``, ``exchangeable_patients`` (of the test split: those with another of as many studies);
        ``diseases``: of each class its ``positives_val`` and ``positives_test``, ``shares`` (test, by expert, ``None``
        without positives), its own ``expert`` (``None`` without positives in both splits, or where experts are fewer
        than diseases), the ``share`` that this one receives, ``lift`` (that share divided by the expert's load),
        ``p`` (of the share) and ``p_holm``; ``diagonal``: ``mean_share`` over the assigned diseases, ``mean_excess``
        (share less load), ``above_claim`` (how many shares exceed `CLAIMED_SHARE`), ``assigned`` (diseases), and of
        each of the three ``p_...``, with ``null_mean_share`` and ``null_above_claim`` (means over the permutations) and
        ``null_mean_share_95`` (their 95th percentile).

    Raises:
        ValueError: If shapes disagree, rows of usage are no shares, or there are no permutations.
    """
    val, test = (RoutedSplit(*map(np.asarray, one)) for one in (val, test))
    _check(val, test, classes, top_k, permutations)
    present = [np.nan_to_num(one.labels) == 1 for one in (val, test)]
    positives = [one.sum(axis=0) for one in present]
    defined = np.flatnonzero((positives[0] > 0) & (positives[1] > 0))
    load = test.usage.mean(axis=0)
    observed = _diagonal(val.usage, present[0], test.usage, present[1], defined)
    rng = np.random.default_rng(seed)
    exchange = [_Exchange(one.groups) for one in (val, test)]
    null = [
        _diagonal(val.usage, present[0][exchange[0](rng)], test.usage, present[1][exchange[1](rng)], defined)
        for _ in range(permutations)
    ]
    p_values = [
        None if observed.experts[c] < 0 else _p(observed.shares[c], [one.shares[c] for one in null])
        for c in range(len(classes))
    ]
    adjusted = holm(p_values)
    shares = _shares(test.usage, present[1])
    diseases = []
    for c, name in enumerate(classes):
        expert = int(observed.experts[c]) if observed.experts[c] >= 0 else None
        share = None if expert is None else float(observed.shares[c])
        diseases.append(
            {
                "name": name,
                "positives_val": int(positives[0][c]),
                "positives_test": int(positives[1][c]),
                "shares": shares[c].tolist() if positives[1][c] else None,
                "expert": expert,
                "share": share,
                "lift": None if share is None or not load[expert] else float(share / load[expert]),
                "p": p_values[c],
                "p_holm": adjusted[c],
            }
        )
    return {
        "num_experts": int(val.usage.shape[1]),
        "top_k": top_k,
        "highest_share": 1 / top_k,
        "uniform_share": 1 / val.usage.shape[1],
        "load": load.tolist(),
        "permutations": permutations,
        "exchangeable_patients": exchange[1].exchangeable,
        "diseases": diseases,
        "diagonal": _summary(observed, null, load),
    }


class _Diagonal(NamedTuple):
    """The assigned expert of each class (-1 without one) and its share of the test studies positive for the class."""

    experts: NDArray[np.int64]
    shares: NDArray[np.float64]


class _Exchange:
    """Draws orders of the studies in which patients of as many studies have taken each other's places.

    Args:
        groups: The patient of each study.
    """

    def __init__(self, groups: Sequence[str]) -> None:
        codes = np.unique(np.asarray(groups, dtype=str), return_inverse=True)[1]
        order = np.argsort(codes, kind="stable")
        of_patient = np.split(order, np.cumsum(np.bincount(codes))[:-1])
        sizes = np.array([len(one) for one in of_patient])
        self.blocks = [np.stack([one for one in of_patient if len(one) == size]) for size in np.unique(sizes)]
        self.studies = len(codes)
        self.exchangeable = int(sum(len(block) for block in self.blocks if len(block) > 1))

    def __call__(self, rng: np.random.Generator) -> NDArray[np.int64]:
        """Returns, for each study, the study whose labels it takes."""
        source = np.empty(self.studies, dtype=np.int64)
        for block in self.blocks:
            source[block] = block[rng.permutation(len(block))]
        return source


def _diagonal(
    val_usage: NDArray[np.float64],
    val_present: NDArray[np.bool_],
    test_usage: NDArray[np.float64],
    test_present: NDArray[np.bool_],
    defined: NDArray[np.int64],
) -> _Diagonal:
    rows, columns = linear_sum_assignment(_shares(val_usage, val_present)[defined], maximize=True)
    experts = np.full(val_present.shape[1], -1)
    experts[defined[rows]] = columns
    shares = np.full(len(experts), np.nan)
    shares[defined[rows]] = _shares(test_usage, test_present)[defined[rows], columns]
    return _Diagonal(experts, shares)


def _shares(usage: NDArray[np.float64], present: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Computes the mean usage among the positive studies of each class: ``(C, E)``, zeros without any."""
    return present.T.astype(np.float64) @ usage / np.maximum(present.sum(axis=0), 1)[:, None]


def _summary(observed: _Diagonal, null: Sequence[_Diagonal], load: NDArray[np.float64]) -> dict[str, Any]:
    def figures(one: _Diagonal) -> tuple[float, float, int]:
        assigned = one.experts >= 0
        shares = one.shares[assigned]
        return (
            float(shares.mean()),
            float((shares - load[one.experts[assigned]]).mean()),
            int((shares > CLAIMED_SHARE).sum()),
        )

    assigned = int((observed.experts >= 0).sum())
    names = ("mean_share", "mean_excess", "above_claim")
    if not assigned:
        return {"assigned": 0} | dict.fromkeys((*names, *(f"p_{name}" for name in names)))
    values, drawn = figures(observed), np.array([figures(one) for one in null])
    return {
        "assigned": assigned,
        **dict(zip(names, values, strict=True)),
        **{f"p_{name}": _p(values[i], drawn[:, i]) for i, name in enumerate(names)},
        "null_mean_share": float(drawn[:, 0].mean()),
        "null_mean_share_95": float(np.quantile(drawn[:, 0], 0.95)),
        "null_above_claim": float(drawn[:, 2].mean()),
    }


def _p(value: float, null: ArrayLike) -> float:
    """Returns the share of permutations at least as large, with the data as they are counted as one.

    A class that a permutation leaves without an expert (NaN) is not as large. Rounding must not decide ties.
    """
    return float((1 + np.sum(np.asarray(null) >= value - 1e-12)) / (1 + len(np.asarray(null))))


def _check(val: RoutedSplit, test: RoutedSplit, classes: Sequence[str], top_k: int, permutations: int) -> None:
    experts = val.usage.shape[1:]
    for name, one in (("val", val), ("test", test)):
        expected = (len(one.usage), len(classes))
        if one.usage.ndim != 2 or not len(one.usage) or one.usage.shape[1:] != experts or one.labels.shape != expected:
            raise ValueError(
                f"{name} must have usage of shape (studies, experts), with the experts of val, and labels of shape "
                f"(studies, {len(classes)}), got {one.usage.shape} and {one.labels.shape}."
            )
        if len(one.groups) != len(one.usage):
            raise ValueError(
                f"{name} must have the patient of each of {len(one.usage)} studies, got {len(one.groups)}."
            )
        if not np.allclose(one.usage.sum(axis=1), 1, atol=1e-4) or (one.usage < 0).any():
            raise ValueError(f"the rows of usage of {name} must be shares that sum to 1.")
    if not 1 <= top_k <= experts[0]:
        raise ValueError(f"top_k must be from 1 to the number of experts, {experts[0]}, got {top_k}.")
    if permutations < 1:
        raise ValueError(f"permutations (--permutations) must be at least 1, got {permutations}.")
