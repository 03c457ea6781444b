"""The decisions of a router (``Routing``) and statistics of them (``RouterStats``).

Letters: T tokens, E experts, K experts per token, C tokens per expert (expert choice).
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from moekit.plan import DispatchPlan
from moekit_kernels.eager import all_true
from moekit_kernels.routing.sums import RoutingCounts, RoutingSums, entropy, routing_sums
from moekit_kernels.routing.sums_plain import load_of_all

__all__ = [
    "FusedSums",
    "RouterStats",
    "Routing",
    "RoutingCounts",
    "RoutingSums",
    "check_stats",
    "entropy",
    "router_stats",
]


class FusedSums(NamedTuple):
    """Sums and counts that a router made along with a routing, which spares another pass over ``(T, E)``.

    Attributes:
        sums: The sums.
        counts: The counts.
        mask: The mask that they were made under, or ``None`` for none.
        made_with: Gates, ids, logits, probabilities and valid rows that they were made from. A routing in which one
            of these was replaced has other sums.
    """

    sums: RoutingSums
    counts: RoutingCounts
    mask: Bool[Tensor, "T"] | None
    made_with: tuple[Tensor | None, ...]

    def of(self, routing: "Routing", mask: Tensor | None) -> bool:
        """Returns whether these are the sums of ``routing`` under ``mask``: the same tensors, not equal ones."""
        return self.mask is mask and all(mine is its for mine, its in zip(self.made_with, routing[:5], strict=True))


class Routing(NamedTuple):
    """One routing decision per token (or, for expert choice, ``C`` tokens per expert).

    A token whose router logits are not all finite is not routed: it takes no capacity and enters no statistic but
    ``nonfinite_tokens``. Its gates are NaN, so its own output is NaN and no other token's
    changes; under expert choice it is never taken, so its output is zero.

    Attributes:
        gates: ``(T, K)`` weights of the chosen experts, float32 or wider; ``(E, C)`` for expert choice.
        expert_ids: Chosen experts, of the shape of ``gates``, each in ``[0, E)``.
        logits: ``(T, E)`` router logits before noise, or ``None`` for a router without any, or that does not return
            them.
        probs: ``(T, E)`` probabilities over experts, each row summing to 1 (zero for a non-finite token), or ``None``
            of a router that does not return them.
        valid: ``(T,)``, False for a token with non-finite logits.
        load_probs: ``(T, E)`` probability that noise would choose the expert (Shazeer 2017, eq. 9), or
            ``None`` where no noise was drawn.
        token_ids: ``None`` for token choice. For expert choice the chosen tokens, ``(E, C)``.
        kept: ``None``, or of the shape of ``gates``, False for slots that are in no expert's rows: for expert choice
            where an expert ran out of real tokens, for token choice where a token uses fewer than ``K`` experts. Their
            gates are zero.
        sums: Sums that the router made, or ``None``. :func:`router_stats` uses them only with the tensors and the
            mask that they were made with, so a routing may be edited freely.
    """

    gates: Float[Tensor, "A B"]
    expert_ids: Int[Tensor, "A B"]
    logits: Float[Tensor, "T E"] | None
    probs: Float[Tensor, "T E"] | None
    valid: Bool[Tensor, "T"]
    load_probs: Float[Tensor, "T E"] | None = None
    token_ids: Int[Tensor, "E C"] | None = None
    kept: Bool[Tensor, "A B"] | None = None
    sums: FusedSums | None = None

    @property
    def num_experts(self) -> int:
        """``E``.

        Raises:
            ValueError: If the routing has neither probabilities nor sums.
        """
        if self.probs is not None:
            return self.probs.shape[-1]
        if self.sums is not None:
            return self.sums.sums.prob_sum.shape[-1]
        raise ValueError("routing must have probs or the sums of its router to tell its number of experts: keep them.")


class CountedTokens(NamedTuple):
    """The tokens that plan and statistics count: those with finite logits, in the mask.

    Attributes:
        tokens: ``(T,)``, True for those.
        are_all: Whether all tokens are known to count; False where that was not read.
    """

    tokens: Bool[Tensor, "T"]
    are_all: bool


def counted_tokens(routing: Routing, mask: Bool[Tensor, "T"] | None) -> CountedTokens:
    """Returns which tokens of a routing count under a mask."""
    tokens = routing.valid if mask is None else routing.valid & mask
    return CountedTokens(tokens, all_true(tokens))


class RouterStats(NamedTuple):
    """Counts and sums of one layer call. ``a + b`` and ``sum(list_of_stats)`` add them up.

    A layer on CPU computes them when one is first read, in eager code where all tokens count; until then gates, ids,
    logits and probabilities of the routing are kept, and must not be modified in place.

    They are sums, never ratios: add them over micro-batches and ranks, then turn the total into a loss
    or a figure. Padding tokens and tokens with non-finite logits are in none of the sums.

    Attributes:
        tokens_per_expert: ``(E,)`` int64, slots routed to each expert before any is dropped.
        dropped_per_expert: ``(E,)`` int64, those of them that were over capacity.
        prob_sum: ``(E,)``, sum over tokens of the router's probabilities. Has a gradient.
        gate_sum: ``(E,)``, sum over slots of the gates: Shazeer's *importance*. Has a gradient.
        load: ``(E,)``, Shazeer's smooth load where noise was drawn (has a gradient), else the count.
        logsumexp_sq_sum: ``()``, sum over tokens of ``logsumexp(logits)**2``. Has a gradient.
        entropy_sum: ``()``, sum over tokens of the entropy of ``probs``, in nats. Has a gradient.
        num_tokens: ``()`` int64, tokens that were routed.
        nonfinite_tokens: ``()`` int64, tokens left out because their router logits were not finite.
    """

    tokens_per_expert: Int[Tensor, "E"]
    dropped_per_expert: Int[Tensor, "E"]
    prob_sum: Float[Tensor, "E"]
    gate_sum: Float[Tensor, "E"]
    load: Float[Tensor, "E"]
    logsumexp_sq_sum: Float[Tensor, ""]
    entropy_sum: Float[Tensor, ""]
    num_tokens: Int[Tensor, ""]
    nonfinite_tokens: Int[Tensor, ""]

    def __add__(self, other: "RouterStats") -> "RouterStats":  # pyright: ignore[reportIncompatibleMethodOverride]
        """Adds field by field (a plain tuple would concatenate)."""
        if not isinstance(other, RouterStats):  # pyright: ignore[reportUnnecessaryIsInstance]
            return NotImplemented
        if self.prob_sum.shape != other.prob_sum.shape:
            raise ValueError(
                "statistics add up only for one number of experts, got "
                f"{self.prob_sum.shape[0]} and {other.prob_sum.shape[0]}."
            )
        return RouterStats(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))

    def __radd__(self, other: object) -> "RouterStats":
        """Lets ``sum(list_of_stats)`` start from 0."""
        return self if other == 0 else NotImplemented

    def detach(self) -> "RouterStats":
        """Returns the same sums without gradients."""
        return RouterStats(*(field.detach() for field in self))


def router_stats(routing: Routing, plan: DispatchPlan, mask: Bool[Tensor, "T"] | None = None) -> RouterStats:
    """Counts one layer call. The plan has counted the slots already; this adds the sums.

    Args:
        routing: The decisions of the router, one row per token.
        plan: The plan made from it.
        mask: True for the tokens that count; all by default.

    Returns:
        The statistics, on the device of ``routing``.

    Raises:
        ValueError: If the plan is for another number of tokens or experts than the routing, or a routing without
            probabilities was edited or is counted under another mask than the router's.
    """
    return make_stats(routing, plan, mask, None)


def make_stats(
    routing: Routing, plan: DispatchPlan, mask: Bool[Tensor, "T"] | None, counted: CountedTokens | None
) -> RouterStats:
    """Computes :func:`router_stats`, where it is known already which tokens count, or is not."""
    num_tokens, num_experts = routing.valid.shape[0], routing.num_experts
    if plan.num_tokens != num_tokens or plan.tokens_per_expert.shape[0] != num_experts:
        raise ValueError(
            f"plan must be made from the routing, of {num_tokens} tokens and {num_experts} experts, got one for "
            f"{plan.num_tokens} tokens and {plan.tokens_per_expert.shape[0]} experts."
        )
    return sum_up(routing, plan.tokens_per_expert, plan.dropped_per_expert, mask, counted)


def sum_up(
    routing: Routing,
    tokens_per_expert: Int[Tensor, "E"],
    dropped_per_expert: Int[Tensor, "E"],
    mask: Bool[Tensor, "T"] | None,
    counted: CountedTokens | None,
) -> RouterStats:
    """Computes :func:`make_stats` from the counts of a plan."""
    if routing.sums is not None and routing.sums.of(routing, mask):
        sums, counts = routing.sums.sums, routing.sums.counts
    else:
        counted = counted_tokens(routing, mask) if counted is None else counted
        sums = _sums(routing, mask, counted)
        counts = _counts(routing, tokens_per_expert, mask, counted, sums.prob_sum.dtype)
    return RouterStats(
        tokens_per_expert=tokens_per_expert,
        dropped_per_expert=dropped_per_expert,
        prob_sum=sums.prob_sum,
        gate_sum=sums.gate_sum,
        load=counts.load,
        logsumexp_sq_sum=sums.logsumexp_sq_sum,
        entropy_sum=sums.entropy_sum,
        num_tokens=counts.num_tokens,
        nonfinite_tokens=counts.nonfinite_tokens,
    )


def _sums(routing: Routing, mask: Tensor | None, counted: CountedTokens) -> RoutingSums:
    if routing.probs is None:
        raise ValueError(
            "routing must have the sums that its router made with these tensors and this mask, or probs: use "
            "TopKRouter(..., return_logits=True), or statistics of the routing as the router returned it."
        )
    return routing_sums(
        routing.gates,
        routing.expert_ids,
        routing.logits,
        routing.probs,
        None if counted.are_all else counted.tokens,
        masked=mask is not None,
        by_token=routing.token_ids is None,
    )


def _counts(
    routing: Routing, tokens_per_expert: Tensor, mask: Tensor | None, counted: CountedTokens, dtype: torch.dtype
) -> RoutingCounts:
    tokens, all_tokens = counted.tokens, routing.valid.shape[0]
    if counted.are_all:
        load = load_of_all(tokens_per_expert, dtype)
        num_tokens = torch.full((), all_tokens, device=tokens.device)
        nonfinite = torch.full((), 0, device=tokens.device)
    else:
        load = tokens_per_expert.to(dtype)
        num_tokens = tokens.sum()
        nonfinite = (all_tokens if mask is None else mask.sum()) - num_tokens
    if routing.load_probs is not None:
        load = torch.where(tokens.unsqueeze(-1), routing.load_probs, 0).sum(0)
    return RoutingCounts(tokens_per_expert, load, num_tokens, nonfinite)


def check_stats(stats: object, expected: str = "RouterStats", *, name: str = "stats") -> None:
    """Checks that an argument holds statistics.

    Args:
        stats: The argument.
        expected: Description of what was expected, for the message.
        name: Name of the argument.

    Raises:
        ValueError: If ``stats`` is not a :class:`~moekit.RouterStats`: ``None`` of a call with ``stats=False``, the
            output of a layer, or anything else.
    """
    if isinstance(stats, RouterStats):
        return
    came = f"a {type(stats).__name__}"
    if stats is None:
        came = "None"
        remedy = "the layer was called with stats=False; call it with stats=True"
    elif hasattr(stats, "stats"):
        remedy = "pass its .stats"
    else:
        remedy = "pass the .stats of a layer's output"
    raise ValueError(f"{name} must be {expected}, got {came}: {remedy}.")
