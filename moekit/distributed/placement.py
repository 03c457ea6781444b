"""Which experts each rank holds: from the loads of experts to a placement, with replicas of the busiest.

Letters: E experts, R ranks, S slots of a rank, P = R S slots, N nodes. A slot holds one expert; an expert that has
several slots has replicas, each of which computes an equal share of its tokens.
"""

import heapq
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from moekit.checks import check_not_negative, check_positive
from moekit.distributed.packing import deal, exchange_until_even, heaviest, likest


@dataclass(frozen=True)
class ExpertPlacement:
    """The experts of each rank, as many on one as on another.

    Attributes:
        experts_of_rank: ``R`` tuples of ``S`` experts each, in the order of the slots.

    Raises:
        ValueError: If ranks have different numbers of slots, one has an expert twice, or an expert is on none.

    Example:
        >>> placement = ExpertPlacement(((0, 1), (0, 2)))
        >>> placement.num_experts, placement.replicas
        (3, (2, 1, 1))
    """

    experts_of_rank: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        """Checks the placement."""
        sizes = {len(each) for each in self.experts_of_rank}
        if len(sizes) != 1 or sizes == {0}:
            raise ValueError(f"ranks must have equal numbers of slots, at least 1, got {sorted(sizes)}.")
        for rank, experts in enumerate(self.experts_of_rank):
            if len(set(experts)) < len(experts):
                raise ValueError(f"rank {rank} must hold an expert once, got {list(experts)}.")
        held = set[int]().union(*self.experts_of_rank)
        if held != set(range(len(held))):
            missing = sorted(set(range(max(held) + 1)) - held)
            raise ValueError(f"experts must be numbered from 0 and each be on a rank, got none of {missing}.")

    @classmethod
    def contiguous(cls, num_experts: int, num_ranks: int) -> "ExpertPlacement":
        """Returns equal chunks in the order of the ranks, without replicas.

        Raises:
            ValueError: If ``num_experts`` is no multiple of ``num_ranks``.
        """
        check_positive("num_ranks", num_ranks)
        if num_experts < 1 or num_experts % num_ranks:
            raise ValueError(f"num_experts must be a multiple of the {num_ranks} ranks, got {num_experts}.")
        slots = num_experts // num_ranks
        return cls(tuple(tuple(range(rank * slots, (rank + 1) * slots)) for rank in range(num_ranks)))

    @property
    def num_experts(self) -> int:
        """``E``."""
        return 1 + max(map(max, self.experts_of_rank))

    @property
    def num_ranks(self) -> int:
        """``R``."""
        return len(self.experts_of_rank)

    @property
    def slots_per_rank(self) -> int:
        """``S``."""
        return len(self.experts_of_rank[0])

    @property
    def num_slots(self) -> int:
        """``P``."""
        return self.num_ranks * self.slots_per_rank

    @property
    def replicas(self) -> tuple[int, ...]:
        """How many slots each expert has."""
        counts = Counter(expert for experts in self.experts_of_rank for expert in experts)
        return tuple(counts[expert] for expert in range(self.num_experts))

    def rank_loads(self, loads: Float[Tensor, "E"]) -> Float[Tensor, "R"]:
        """Returns the load of each rank ``(R,)``, float64, where replicas share that of their expert equally.

        Args:
            loads: ``(E,)``, tokens of each expert.
        """
        each = loads.double().cpu() / torch.tensor(self.replicas, dtype=torch.float64, device="cpu")
        return each[torch.tensor(self.experts_of_rank, device="cpu")].sum(1)


def expert_placement(
    loads: Float[Tensor, "E"],
    mesh: DeviceMesh | Sequence[int],
    *,
    replicas: int = 0,
    before: ExpertPlacement | None = None,
) -> ExpertPlacement:
    """Places experts on ranks so that the most loaded rank has as little as a greedy search finds.

    Slots beyond one for each expert go, one by one, to the expert with the most load for each of its replicas. Slots
    are dealt to the ranks in rounds, the heaviest first, each to the rank with the least load; then the most loaded
    rank exchanges slots with others as long as this helps. An expert is on a rank once. On a mesh of two dimensions
    replicas are spread over the nodes first, so that as many nodes as possible have their own. Nothing is drawn and no
    process group is needed: the same loads give the same placement.

    The loads of the most and of the least loaded rank differ by at most the load of one replica (on two dimensions:
    those of two nodes do, and of two ranks of a node). Without replicas no rank has more than the most loaded one of
    :meth:`ExpertPlacement.contiguous`, where that exists.

    Args:
        loads: ``(E,)``, tokens of each expert, such as ``stats.tokens_per_expert`` summed over steps and ranks. Must be
            the same on every rank.
        mesh: Ranks that divide the experts, such as ``mesh["ep"]``, or their sizes: ``(R,)``, or ``(N, R / N)`` for
            nodes and the ranks of a node.
        replicas: Slots beyond one for each expert: ``P = E + replicas``, a multiple of ``R``, at most ``E R``.
        before: The placement that it will replace. Which rank gets which of the sets of experts makes no difference to
            the loads; given this, each goes, one by one, where most of it is already, so that fewer experts move.

    Returns:
        The placement.

    Raises:
        ValueError: If a load is negative or not finite, ``mesh`` has another number of dimensions, ``replicas`` does
            not fit, or ``before`` is of other ranks.

    Reference:
        The two steps are those of DeepSeek's expert-parallel load balancer,
        https://github.com/deepseek-ai/EPLB. It packs groups of experts on nodes and replicates within each; here
        replicas are spread over the nodes, exchanges follow the packing, and a rank never has an expert twice.

    Example:
        >>> placement = expert_placement(torch.tensor([6.0, 1.0, 1.0]), (2,), replicas=1)
        >>> placement.experts_of_rank, placement.rank_loads(torch.tensor([6.0, 1.0, 1.0])).tolist()
        (((0, 1), (0, 2)), [4.0, 4.0])
    """
    sizes = tuple(cast(Sequence[int], mesh.mesh.shape if isinstance(mesh, DeviceMesh) else mesh))
    values = _checked_loads(loads)
    ranks = _checked_ranks(sizes, len(values), replicas)
    if before is not None and before.num_ranks != ranks:
        raise ValueError(f"before must be a placement on {ranks} ranks, got one on {before.num_ranks}.")
    counts = _replicate(values, replicas, ranks)
    weights = [load / count for load, count in zip(values, counts, strict=True)]
    slots = [expert for expert in heaviest(weights) for _ in range(counts[expert])]
    if len(sizes) == 1 or not replicas:
        placed = _even(slots, weights, ranks)
    else:
        nodes = _even(slots, weights, sizes[0])
        placed = [rank for node in nodes for rank in _even(_in_order(node, weights), weights, sizes[1])]
    placement = _placement(placed)
    if not replicas:
        exchanged = [list(each) for each in ExpertPlacement.contiguous(len(values), ranks).experts_of_rank]
        exchange_until_even(exchanged, weights, dict.fromkeys(range(len(values)), 1))
        placement = min(placement, _placement(exchanged), key=lambda each: max(_loads(each, weights)))
    if before is None:
        return placement
    nodes = sizes[0] if len(sizes) == 2 and replicas else 1
    return _placement(_renumbered(placement.experts_of_rank, before.experts_of_rank, nodes))


def _checked_loads(loads: Tensor) -> list[float]:
    if loads.ndim != 1 or not len(loads):
        raise ValueError(f"loads must have shape (E,), one number for each expert, got {tuple(loads.shape)}.")
    values = cast(list[float], loads.detach().double().tolist())
    if not all(math.isfinite(value) and value >= 0 for value in values):
        raise ValueError(f"loads must be finite and not negative, got {min(values)} to {max(values)}.")
    return values


def _checked_ranks(sizes: Sequence[int], num_experts: int, replicas: int) -> int:
    if len(sizes) not in (1, 2):
        raise ValueError(f"mesh must have one dimension, or two, nodes and ranks of a node, got {len(sizes)}.")
    for size in sizes:
        check_positive("size of mesh", size)
    check_not_negative("replicas", replicas)
    ranks = math.prod(sizes)
    slots = num_experts + replicas
    if slots > num_experts * ranks:
        raise ValueError(
            f"replicas must be at most {num_experts * (ranks - 1)}, every expert on each of {ranks} ranks, got "
            f"{replicas}."
        )
    if slots % ranks:
        raise ValueError(
            f"replicas must fill equal numbers of slots on every rank: {num_experts} experts and {replicas} replicas "
            f"are no multiple of {ranks} ranks. Use {replicas + -slots % ranks} replicas."
        )
    return ranks


def _replicate(loads: Sequence[float], replicas: int, most: int) -> list[int]:
    """Returns the number of slots of each expert: each further one goes where a replica has the most load."""
    counts = [1] * len(loads)
    queue = [(-load, 1, expert) for expert, load in enumerate(loads)]
    heapq.heapify(queue)
    for _ in range(replicas):
        _, count, expert = heapq.heappop(queue)
        counts[expert] = count + 1
        if count + 1 < most:
            heapq.heappush(queue, (-loads[expert] / (count + 1), count + 1, expert))
    return counts


def _even(slots: Sequence[int], weights: Sequence[float], bins: int) -> list[list[int]]:
    """Divides slots, the heaviest first, among bins of equal numbers, an expert's own over as many as possible."""
    limits = {expert: -(-count // bins) for expert, count in Counter(slots).items()}
    placed = deal(slots, weights, limits, bins)
    exchange_until_even(placed, weights, limits)
    return placed


def _in_order(slots: Sequence[int], weights: Sequence[float]) -> list[int]:
    place = {expert: place for place, expert in enumerate(heaviest(weights))}
    return sorted(slots, key=place.__getitem__)


def _renumbered(after: Sequence[Sequence[int]], before: Sequence[Sequence[int]], nodes: int) -> list[Sequence[int]]:
    """Returns the ranks of a placement in an order in which they have much of what they had before, by node."""
    size = len(after) // nodes
    new, old = ([each[node * size : (node + 1) * size] for node in range(nodes)] for each in (after, before))
    chosen = likest([Counter(chain(*ranks)) for ranks in new], [Counter(chain(*ranks)) for ranks in old])
    renumbered: list[Sequence[int]] = []
    for place, node in enumerate(chosen):
        ranks = likest([Counter(rank) for rank in new[node]], [Counter(rank) for rank in old[place]])
        renumbered += [new[node][rank] for rank in ranks]
    return renumbered


def _placement(placed: Sequence[Sequence[int]]) -> ExpertPlacement:
    return ExpertPlacement(tuple(tuple(sorted(experts)) for experts in placed))


def _loads(placement: ExpertPlacement, weights: Sequence[float]) -> list[float]:
    return [math.fsum(weights[expert] for expert in experts) for experts in placement.experts_of_rank]
