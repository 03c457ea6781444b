"""Routing written out: the router's decision from its logits, and the sums that losses are made of."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from moekit_kernels.routing.checks import Scoring, check_arguments
from moekit_kernels.routing.finite import finite_logits, mark_invalid
from moekit_kernels.routing.selection import limit_to_groups, top_k_ids
from moekit_kernels.routing.sums import RoutingSums, routing_sums


class Routed(NamedTuple):
    """What :func:`~moekit_kernels.routing.route` returns. Float fields are float32 or wider.

    Attributes:
        gates: ``(T, K)``, weights of the chosen experts, best first; NaN for a token with non-finite logits.
        ids: ``(T, K)`` int64, the chosen experts; for a token with non-finite logits those of zero logits.
        logits: ``(T, E)``, the router logits; zero for a token with non-finite ones.
        probs: ``(T, E)``, probabilities over experts; zero for a token with non-finite logits.
        valid: ``(T,)``, False for a token with non-finite logits.
        tokens_per_expert: ``(E,)`` int64, slots of each expert, of tokens that are valid and in the mask; None without
            sums.
        sums: Sums over the same tokens; None without.
    """

    gates: Float[Tensor, "T K"]
    ids: Int[Tensor, "T K"]
    logits: Float[Tensor, "T E"]
    probs: Float[Tensor, "T E"]
    valid: Bool[Tensor, "T"]
    tokens_per_expert: Int[Tensor, "E"] | None
    sums: RoutingSums | None


class Decision(NamedTuple):
    """The part of :class:`Routed` that selection makes, one row per token."""

    gates: Float[Tensor, "T K"]
    ids: Int[Tensor, "T K"]
    probs: Float[Tensor, "T E"]


def decide_reference(
    logits: Float[Tensor, "T E"],
    valid: Bool[Tensor, "T"],
    top_k: int,
    *,
    scoring: Scoring,
    renormalize: bool,
    scaling_factor: float,
    selection_bias: Float[Tensor, "E"] | None,
    num_groups: int | None,
    topk_groups: int | None,
) -> Decision:
    """Gates, ids and probabilities from what :func:`finite_logits` returned; see :func:`route_reference`."""
    scores = logits.sigmoid() if scoring == "sigmoid" else F.softmax(logits, dim=-1)
    plain = selection_bias is None and num_groups is None
    # Both scores grow with the logits: ranked by these, so that rounding of exp cannot reorder, on any device.
    ranked = logits.detach() if plain or scoring == "topk_softmax" else scores.detach()
    if selection_bias is not None:
        ranked = ranked + selection_bias
    if num_groups is not None and topk_groups is not None:
        ranked = limit_to_groups(ranked, num_groups, topk_groups)
    ids = top_k_ids(ranked, top_k)
    chosen = logits.gather(-1, ids)
    if scoring == "sigmoid" and renormalize:
        gates = _normalised_sigmoid(chosen)
    elif scoring == "topk_softmax" or renormalize:
        gates = F.softmax(chosen, dim=-1)  # also the softmax over all, renormalised, but never 0/0
    else:
        gates = scores.gather(-1, ids)
    gates = mark_invalid(gates if scaling_factor == 1.0 else gates * scaling_factor, valid)
    probs = _normalised_sigmoid(logits) if scoring == "sigmoid" else scores
    return Decision(gates, ids, torch.where(valid.unsqueeze(-1), probs, 0))


def route_reference(
    logits: Float[Tensor, "T E"],
    top_k: int,
    *,
    scoring: Scoring = "softmax",
    renormalize: bool = True,
    scaling_factor: float = 1.0,
    selection_bias: Float[Tensor, "E"] | None = None,
    num_groups: int | None = None,
    topk_groups: int | None = None,
    mask: Bool[Tensor, "T"] | None = None,
    with_sums: bool = True,
) -> Routed:
    """Sends every token to the ``top_k`` experts of largest score; ties go to the lowest id.

    | scoring | score of expert e | gate of a chosen expert | probs |
    |---|---|---|---|
    | ``"softmax"`` | ``softmax(logits)_e`` | its score | the scores |
    | ``"topk_softmax"`` | ``logits_e`` | softmax over the chosen logits | ``softmax(logits)`` |
    | ``"sigmoid"`` | ``sigmoid(logits_e)`` | its score | the scores over their sum |

    Without ``selection_bias`` and groups, experts are ranked by their logits, which is the same order but for
    scores that rounding makes equal. Selection has no gradient. Computed in float32, or float64 for such logits.

    Args:
        logits: Router logits.
        top_k: ``K``.
        scoring: See the table.
        renormalize: Whether the gates of a token are divided by their sum (``"topk_softmax"``: always).
        scaling_factor: Multiplies the gates, after that.
        selection_bias: Added to the scores for selection, not for the gates.
        num_groups: Splits the experts into equal groups of neighbours.
        topk_groups: Chooses within the best ``topk_groups`` groups only; a group's score is the sum of its
            two largest, bias included.
        mask: True for tokens that count in the sums; all by default. It changes no gate and no id.
        with_sums: Whether to compute the sums.

    Returns:
        Decision and sums.

    Raises:
        ValueError: If the arguments do not fit each other.
    """
    check_arguments(logits, top_k, scoring, selection_bias, num_groups, topk_groups, mask)
    logits, valid = finite_logits(logits.to(torch.promote_types(logits.dtype, torch.float32)))
    gates, ids, probs = decide_reference(
        logits,
        valid,
        top_k,
        scoring=scoring,
        renormalize=renormalize,
        scaling_factor=scaling_factor,
        selection_bias=selection_bias,
        num_groups=num_groups,
        topk_groups=topk_groups,
    )
    if not with_sums:
        return Routed(gates, ids, logits, probs, valid, None, None)
    counted = valid if mask is None else valid & mask
    slots = counted.unsqueeze(-1).expand_as(ids).flatten().long()
    tokens_per_expert = ids.new_zeros(logits.shape[1]).index_add(0, ids.flatten(), slots)
    sums = routing_sums(gates, ids, logits, probs, counted, masked=mask is not None)
    return Routed(gates, ids, logits, probs, valid, tokens_per_expert, sums)


def _normalised_sigmoid(logits: Tensor) -> Tensor:
    """``sigmoid(logits)`` over its sum, without the 0/0 of logits so low that every sigmoid is zero."""
    return F.softmax(F.logsigmoid(logits), dim=-1)
