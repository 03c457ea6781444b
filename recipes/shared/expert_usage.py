"""Which experts a trained router uses, overall and for each class."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


def expert_usage(
    expert_ids: ArrayLike,
    gates: ArrayLike,
    labels: ArrayLike,
    classes: Sequence[str],
    num_experts: int,
    entropies: ArrayLike,
) -> dict[str, Any]:
    """Counts routed slots by expert and by class (the MedVLMoE paper's Figure 3).

    A study routed to ``K`` experts fills ``K`` slots. As its experts differ, no expert can hold more
    than ``1 / K`` of the slots.

    Args:
        expert_ids: Experts of each study, shape ``(N, K)``, integers in ``[0, E)``.
        gates: Their weights, shape ``(N, K)``, not negative.
        labels: Shape ``(N, C)``: 1, 0 or NaN for unknown.
        classes: Names of the ``C`` classes.
        num_experts: ``E``.
        entropies: Entropy of the router's distribution for each study in nats, shape ``(N,)``.

    Returns:
        ``load`` (share of the slots, ``E`` numbers summing to 1), ``gate_share`` (share of the gates'
        sum, likewise; ``None`` when all gates are 0), ``entropy`` (mean, nats), ``num_experts``,
        ``top_k`` and ``activation``: ``classes``, ``positives`` and ``matrix``, whose row ``c`` is the
        load among the studies positive for class ``c`` (``None`` without any).

    Raises:
        ValueError: If shapes disagree, there is no study, an expert is outside ``[0, E)``, or a gate or
            an entropy is negative or not finite.
    """
    ids, weights = np.asarray(expert_ids), np.asarray(gates, np.float64)
    truth, nats = np.asarray(labels, np.float64), np.asarray(entropies, np.float64)
    _check_shapes(ids, weights, truth, nats, classes)
    _check_values(ids, weights, nats, num_experts)
    mass = np.bincount(ids.ravel(), weights.ravel(), minlength=num_experts)
    rows = [ids[truth[:, c] == 1] for c in range(len(classes))]
    return {
        "load": _shares(ids, num_experts),
        "gate_share": (mass / mass.sum()).tolist() if mass.sum() > 0 else None,
        "entropy": float(nats.mean()),
        "num_experts": int(num_experts),
        "top_k": int(ids.shape[1]),
        "activation": {
            "classes": list(classes),
            "matrix": [_shares(row, num_experts) if len(row) else None for row in rows],
            "positives": [len(row) for row in rows],
        },
    }


def _shares(ids: NDArray[np.integer], num_experts: int) -> list[float]:
    return (np.bincount(ids.ravel(), minlength=num_experts) / ids.size).tolist()


def _check_shapes(
    ids: NDArray[np.integer],
    gates: NDArray[np.float64],
    labels: NDArray[np.float64],
    entropies: NDArray[np.float64],
    classes: Sequence[str],
) -> None:
    if ids.ndim != 2 or 0 in ids.shape or not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(
            f"expert_ids must be integers of shape (studies, top_k) with at least one study, got "
            f"{ids.dtype} of shape {ids.shape}."
        )
    studies = len(ids)
    for name, array, expected in (
        ("gates", gates, ids.shape),
        ("labels", labels, (studies, len(classes))),
        ("entropies", entropies, (studies,)),
    ):
        if array.shape != expected:
            raise ValueError(f"{name} must have shape {expected} to match expert_ids, got {array.shape}.")


def _check_values(
    ids: NDArray[np.integer], gates: NDArray[np.float64], entropies: NDArray[np.float64], num_experts: int
) -> None:
    outside = (ids < 0) | (ids >= num_experts)
    if outside.any():
        raise ValueError(
            f"expert_ids must lie in [0, num_experts) = [0, {num_experts}), got {int(ids[outside][0])}."
        )
    for name, array in (("gates", gates), ("entropies", entropies)):
        wrong = ~(np.isfinite(array) & (array >= 0))
        if wrong.any():
            raise ValueError(f"{name} must be finite and not negative, got {float(array[wrong][0])!r}.")
