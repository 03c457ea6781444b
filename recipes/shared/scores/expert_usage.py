"""Which experts a trained router uses, overall and for each class."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from recipes.shared.scores.expert_load import load_measures


def expert_usage(
    usage: ArrayLike,
    gates: ArrayLike,
    labels: ArrayLike,
    classes: Sequence[str],
    *,
    top_k: int,
    entropies: ArrayLike,
) -> dict[str, Any]:
    """Averages the routing of studies, over all of them and by class (the MedVLMoE paper's Figure 3).

    Every study counts the same, whether it was routed by one decision or by one per token.

    Args:
        usage: Share of each study's routed slots at each expert, shape ``(N, E)``, rows summing to 1. As
            the ``K`` experts of a decision differ, no share is above ``1 / K``.
        gates: Share of each study's gates at each expert, shape ``(N, E)``, rows summing to 1.
        labels: Shape ``(N, C)``: 1, 0 or NaN for unknown.
        classes: Names of the ``C`` classes.
        top_k: ``K``.
        entropies: Entropy of the router's distribution for each study in nats, shape ``(N,)``.

    Returns:
        ``load`` (mean usage, ``E`` numbers summing to 1) with the measures of
        :func:`~recipes.shared.scores.expert_load.load_measures`, ``gate_share`` (likewise of the gates),
        ``entropy`` (of the router's probabilities: mean, nats), ``num_experts``, ``top_k`` and ``activation``:
        ``classes``, ``positives`` and ``matrix``, whose row ``c`` is the load among the studies positive for class
        ``c`` (``None`` without any).

    Raises:
        ValueError: If shapes disagree, there is no study, a row of ``usage`` or ``gates`` is no
            distribution, or an entropy is negative or not finite.
    """
    shares, weights = np.asarray(usage, np.float64), np.asarray(gates, np.float64)
    truth, nats = np.asarray(labels, np.float64), np.asarray(entropies, np.float64)
    _check_shapes(shares, weights, truth, nats, classes)
    _check_values(shares, weights, nats)
    rows = [shares[truth[:, c] == 1] for c in range(len(classes))]
    load = shares.mean(0).tolist()
    return {
        "load": load,
        **load_measures(load, top_k=top_k, decisions=len(shares)),
        "gate_share": weights.mean(0).tolist(),
        "entropy": float(nats.mean()),
        "num_experts": int(shares.shape[1]),
        "top_k": top_k,
        "activation": {
            "classes": list(classes),
            "matrix": [row.mean(0).tolist() if len(row) else None for row in rows],
            "positives": [len(row) for row in rows],
        },
    }


def _check_shapes(
    usage: NDArray[np.float64],
    gates: NDArray[np.float64],
    labels: NDArray[np.float64],
    entropies: NDArray[np.float64],
    classes: Sequence[str],
) -> None:
    if usage.ndim != 2 or 0 in usage.shape:
        raise ValueError(f"usage must have shape (studies, experts) with at least one study, got {usage.shape}.")
    studies = len(usage)
    for name, array, expected in (
        ("gates", gates, usage.shape),
        ("labels", labels, (studies, len(classes))),
        ("entropies", entropies, (studies,)),
    ):
        if array.shape != expected:
            raise ValueError(f"{name} must have shape {expected} to match usage, got {array.shape}.")


def _check_values(usage: NDArray[np.float64], gates: NDArray[np.float64], entropies: NDArray[np.float64]) -> None:
    for name, array in (("usage", usage), ("gates", gates)):
        wrong = ~(np.isclose(array.sum(1), 1, atol=1e-4) & (array >= 0).all(1))
        if wrong.any():
            raise ValueError(
                f"the rows of {name} must be shares that sum to 1, got {array[wrong][0].tolist()} in row "
                f"{int(wrong.argmax())}."
            )
    wrong = ~(np.isfinite(entropies) & (entropies >= 0))
    if wrong.any():
        raise ValueError(f"entropies must be finite and not negative, got {float(entropies[wrong][0])!r}.")
