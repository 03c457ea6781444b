"""Sums over the tokens of a routing, of which losses and statistics are made.

Names end with the letters of their layout: T tokens, E experts, A and B the sizes of the gates; a 1 is a column.
"""

from typing import NamedTuple, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from moekit_kernels.eager import is_plain_eager, needs_gradient
from moekit_kernels.routing.sums_plain import SumsOfAll, sums_of_all
from moekit_kernels.transforms import may_be_differentiated


class RoutingSums(NamedTuple):
    """Sums over the tokens that count: valid, and in the mask. Float32 or wider.

    Attributes:
        prob_sum: ``(E,)``, sum over tokens of the probabilities.
        gate_sum: ``(E,)``, sum over slots of the gates.
        logsumexp_sq_sum: ``()``, sum over tokens of ``logsumexp(logits)**2``; zero without logits.
        entropy_sum: ``()``, sum over tokens of the entropy of the probabilities, in nats.
    """

    prob_sum: Float[Tensor, "E"]
    gate_sum: Float[Tensor, "E"]
    logsumexp_sq_sum: Float[Tensor, ""]
    entropy_sum: Float[Tensor, ""]


class RoutingCounts(NamedTuple):
    """Counts of slots and tokens, in the mask.

    Attributes:
        tokens_per_expert: ``(E,)`` int64, slots of each expert, of valid tokens.
        load: ``(E,)``, the same in the dtype of the sums.
        num_tokens: ``()`` int64, valid tokens.
        nonfinite_tokens: ``()`` int64, the other ones.
    """

    tokens_per_expert: Int[Tensor, "E"]
    load: Float[Tensor, "E"]
    num_tokens: Int[Tensor, ""]
    nonfinite_tokens: Int[Tensor, ""]


def entropy(probs: Float[Tensor, "... E"]) -> Float[Tensor, "..."]:
    """Computes ``-sum p ln p`` in nats over the last dimension; ``0 ln 0`` is 0, in value and in gradient."""
    if not may_be_differentiated(probs):
        return cast(Tensor, torch.special.entr(probs)).sum(-1)
    positive = probs > 0  # the derivative of entr is infinite at 0
    return -(probs * torch.where(positive, probs, 1.0).log()).sum(-1)


def routing_counts(
    ids: Int[Tensor, "T K"],
    valid: Bool[Tensor, "T"],
    mask: Bool[Tensor, "T"] | None,
    num_experts: int,
    dtype: torch.dtype,
) -> RoutingCounts:
    """Counts a routing.

    Args:
        ids: The chosen experts.
        valid: False for tokens with non-finite logits.
        mask: True for tokens that count; all by default.
        num_experts: ``E``.
        dtype: Of the load.
    """
    counted_T = valid if mask is None else valid & mask
    counted_N = counted_T.unsqueeze(-1).expand_as(ids).flatten().long()
    tokens_per_expert = ids.new_zeros(num_experts).index_add(0, ids.flatten(), counted_N)
    num_tokens = counted_T.sum()
    real_tokens = valid.shape[0] if mask is None else mask.sum()
    return RoutingCounts(tokens_per_expert, tokens_per_expert.to(dtype), num_tokens, real_tokens - num_tokens)


def routing_sums(
    gates: Float[Tensor, "A B"],
    ids: Int[Tensor, "A B"],
    logits: Float[Tensor, "T E"] | None,
    probs: Float[Tensor, "T E"],
    counted: Bool[Tensor, "T"] | None,
    *,
    masked: bool = True,
    by_token: bool = True,
) -> RoutingSums:
    """Sums up a routing.

    Args:
        gates: ``(T, K)``, or ``(E, C)`` of expert choice, whose slots are all of tokens that count.
        ids: The expert of each gate.
        logits: Router logits, finite; None for a router without any.
        probs: Probabilities over experts.
        counted: True for tokens that count; None if all do.
        masked: Whether ``counted`` leaves out more than the tokens with non-finite logits, whose probabilities are
            zero.
        by_token: Whether the rows of ``gates`` are tokens.

    Returns:
        The sums, with gradients of every order.
    """
    if counted is None and probs.is_cpu and is_plain_eager(gates, ids, logits, probs):
        sums = SumsOfAll.apply if needs_gradient(gates, logits, probs) else sums_of_all
        return RoutingSums(*sums(gates, ids, logits, probs))
    probs_TE, gates_AB, lse_T = probs, gates, None if logits is None else logits.logsumexp(-1)
    if counted is not None:
        counted_T1 = counted.unsqueeze(-1)
        probs_TE = torch.where(counted_T1, probs, 0) if masked else probs
        gates_AB = torch.where(counted_T1, gates, 0) if by_token else gates
        lse_T = None if lse_T is None else torch.where(counted, lse_T, 0)
    return RoutingSums(
        prob_sum=probs_TE.sum(0),
        gate_sum=probs.new_zeros(probs.shape[-1]).index_add(0, ids.flatten(), gates_AB.flatten().to(probs.dtype)),
        logsumexp_sq_sum=probs.new_zeros(()) if lse_T is None else lse_T.dot(lse_T),
        entropy_sum=entropy(probs_TE.flatten()),
    )
