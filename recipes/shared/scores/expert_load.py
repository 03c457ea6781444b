"""How evenly a router uses its experts: of the slots that it hands out, not of its probabilities."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

LIVE_SHARE = 0.25
"""An expert lives if it gets at least this share of an equal load: 1/32 of all slots for 8 experts."""

COLLAPSE = 0.9
"""A router has collapsed where its K busiest experts take this share of the slots, and half-way to all at least."""

LEAST_SLOTS = 10
"""Slots per expert below which chance alone leaves experts without any, so that nothing is concluded."""


def load_measures(load: ArrayLike, *, top_k: int, decisions: int | None = None) -> dict[str, Any]:
    """Measures the balance of a load.

    A router that is undecided about each study has probabilities near ``1 / E``, whose entropy is near its maximum ``ln
    E``, and may still send all studies to the same ``K`` experts. So all of these are of the load: the share of each
    expert in the slots that the router's ``K`` choices make.

    Args:
        load: Share of each expert in the slots, or their numbers, shape ``(E,)``.
        top_k: Experts per decision, ``K``.
        decisions: How many decisions the load is made of; with fewer than 10 slots per expert there is no warning.

    Returns:
        ``max_violation`` (largest load over the mean, less 1: 0 at balance, ``E / K - 1`` where all decisions are the
        same), ``load_entropy`` (nats, ``ln E`` at balance), ``live_experts`` (how many get at least a quarter of an
        equal share), ``dead_experts`` (ids of the others) and ``warning`` (in words; ``None`` where all live).

    Raises:
        ValueError: If the load is not one row of finite numbers with a positive sum.
    """
    slots = np.asarray(load, np.float64)
    if slots.ndim != 1 or not np.isfinite(slots).all() or (slots < 0).any() or slots.sum() <= 0:
        raise ValueError(
            f"load must be one row of numbers of at least 0 with a positive sum, got {np.asarray(load).tolist()!r}."
        )
    share, num_experts = slots / slots.sum(), len(slots)
    dead = [int(expert) for expert in np.flatnonzero(share < LIVE_SHARE / num_experts)]
    judged = decisions is None or decisions * top_k >= LEAST_SLOTS * num_experts
    positive = share[share > 0]
    return {
        "max_violation": float(share.max() * num_experts - 1),
        "load_entropy": float(-(positive * np.log(positive)).sum()),
        "live_experts": num_experts - len(dead),
        "dead_experts": dead,
        "warning": _warning(share, top_k, dead) if dead and judged else None,
    }


def load_record(load: Sequence[float], *, top_k: int, prefix: str = "") -> dict[str, Any]:
    """Returns the load of the experts and its measures as fields of an epoch's record; none of a load without slots.

    Args:
        load: Slots of each expert, or their share, ``(E,)``.
        top_k: Experts per decision.
        prefix: Begins the name of every field.
    """
    total = sum(load)
    if total <= 0:
        return {}
    measures = load_measures(load, top_k=top_k)
    kept = {name: measures[name] for name in ("load_entropy", "max_violation", "live_experts")}
    return {f"{prefix}{name}": value for name, value in {"load": [each / total for each in load], **kept}.items()}


def _warning(share: np.ndarray, top_k: int, dead: Sequence[int]) -> str:
    """Says which experts are dead, and where the slots go."""
    num_experts = len(share)
    least = LIVE_SHARE / num_experts
    verb = "is" if len(dead) == 1 else "are"
    text = (
        f"{len(dead)} of {num_experts} experts {verb} dead ({_listed(dead)}): less than {_percent(least)} of the "
        "slots, a quarter of an equal share"
    )
    order = np.argsort(-share, kind="stable")
    busiest = sorted(int(expert) for expert in order[:top_k])
    taken = float(share[busiest].sum())
    if taken >= max(COLLAPSE, (1 + top_k / num_experts) / 2):
        return f"the router has collapsed: {_percent(taken)} of the slots go to {_experts(busiest)}; {text}"
    return f"{text}; {_percent(min(1.0, float(share[order[0]]) * top_k))} of the decisions choose expert {order[0]}"


def _experts(ids: Sequence[int]) -> str:
    return f"expert {ids[0]}" if len(ids) == 1 else f"experts {_listed(ids)}"


def _listed(ids: Sequence[int]) -> str:
    return ", ".join(map(str, ids))


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
