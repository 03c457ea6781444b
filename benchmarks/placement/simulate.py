"""What ranks would have to compute if experts were placed by the loads of windows before. W windows, E experts."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from moekit.distributed import ExpertPlacement, expert_placement


class Scheme(NamedTuple):
    """One way of placing experts.

    Attributes:
        name: For the table.
        replicas: Slots beyond one for each expert; None for equal chunks in the order of the experts.
    """

    name: str
    replicas: int | None


class Outcome(NamedTuple):
    """A scheme over the windows that have one before them.

    Attributes:
        scheme: Which.
        ratios: Largest load of a rank over the mean, by window.
        known: The same, had the loads of the window itself been known.
        moved: Share of the slots whose expert came from another rank, by window.
        slots: Slots of a rank.
    """

    scheme: Scheme
    ratios: list[float]
    known: list[float]
    moved: list[float]
    slots: int


def simulate(loads: Tensor, mesh: Sequence[int], scheme: Scheme, *, history: int = 1, every: int = 1) -> Outcome:
    """Places experts by the sum of the last windows, and counts the loads of the ranks in the next ones.

    Args:
        loads: ``(W, E)``, slots of each expert by window.
        mesh: ``(ranks,)``, or nodes and the ranks of a node.
        scheme: How experts are placed.
        history: Windows before a placement whose loads it is made from.
        every: Windows from one placement to the next.

    Raises:
        ValueError: If experts, replicas and ranks do not fit, or there are fewer than two windows.
    """
    if len(loads) < 2:
        raise ValueError(f"loads must have two windows or more, got {len(loads)}: the first one has none before it.")
    ranks = 1
    for size in mesh:
        ranks *= size
    placement = _placed(loads[0], mesh, ranks, scheme)
    outcome = Outcome(scheme, [], [], [], placement.slots_per_rank)
    for window in range(1, len(loads)):
        before = placement
        if (window - 1) % every == 0:
            past = loads[max(0, window - history) : window].sum(0)
            placement = _placed(past, mesh, ranks, scheme, before)
        outcome.moved.append(0.0 if window == 1 else moved_share(before, placement))
        outcome.ratios.append(_ratio(placement, loads[window]))
        outcome.known.append(_ratio(_placed(loads[window], mesh, ranks, scheme), loads[window]))
    return outcome


def moved_share(before: ExpertPlacement, after: ExpertPlacement) -> float:
    """Returns the share of the slots of ``after`` whose expert the rank did not hold ``before``."""
    pairs = zip(before.experts_of_rank, after.experts_of_rank, strict=True)
    return sum(len(set(new) - set(old)) for old, new in pairs) / after.num_slots


def _placed(
    loads: Tensor, mesh: Sequence[int], ranks: int, scheme: Scheme, before: ExpertPlacement | None = None
) -> ExpertPlacement:
    if scheme.replicas is None:
        return ExpertPlacement.contiguous(len(loads), ranks)
    return expert_placement(loads, mesh, replicas=scheme.replicas, before=before)


def _ratio(placement: ExpertPlacement, loads: Tensor) -> float:
    by_rank = placement.rank_loads(loads)
    total = by_rank.sum().item()
    return by_rank.max().item() * len(by_rank) / total if total else 1.0
