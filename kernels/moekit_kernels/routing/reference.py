"""Routing written out: the router's decision from its logits, and the sums that losses are made of.

Names end with the letters of their layout: T tokens, E experts, K experts per token, N = T·K slots.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from moekit_kernels.routing.checks import check_arguments
from moekit_kernels.routing.finite import FiniteLogits, finite_logits
from moekit_kernels.routing.options import GroupScore, RouteOptions, Scoring
from moekit_kernels.routing.scores import gates_of_chosen, probabilities, scores_of
from moekit_kernels.routing.selection import limit_to_groups, top_k_ids
from moekit_kernels.routing.sums import RoutingCounts, RoutingSums, routing_counts, routing_sums


class Routed(NamedTuple):
    """What :func:`~moekit_kernels.routing.route` returns. Float fields are float32 or wider.

    Attributes:
        gates: ``(T, K)``, weights of the chosen experts, best first; NaN for a token with non-finite logits.
        ids: ``(T, K)`` int64, the chosen experts; for a token with non-finite logits those of zero logits.
        logits: ``(T, E)``, the router logits; zero for a token with non-finite ones. None where not asked for.
        probs: ``(T, E)``, probabilities over experts; zero for a token with non-finite logits. None where not asked
            for.
        valid: ``(T,)``, False for a token with non-finite logits.
        counts: Counts over the tokens in the mask; None without sums.
        sums: Sums over the same tokens; None without.
    """

    gates: Float[Tensor, "T K"]
    ids: Int[Tensor, "T K"]
    logits: Float[Tensor, "T E"] | None
    probs: Float[Tensor, "T E"] | None
    valid: Bool[Tensor, "T"]
    counts: RoutingCounts | None
    sums: RoutingSums | None


class _Decision(NamedTuple):
    """The part of :class:`Routed` that selection makes, one row per token."""

    gates: Float[Tensor, "T K"]
    ids: Int[Tensor, "T K"]
    probs: Float[Tensor, "T E"]


def _decide(finite: FiniteLogits, options: RouteOptions) -> _Decision:
    """Decides from what :func:`finite_logits` returned."""
    top_k, scoring, renormalize, scaling_factor, selection_bias, num_groups, topk_groups, group_score = options
    logits_TE = finite.logits
    scores_TE = scores_of(logits_TE, scoring)
    plain = selection_bias is None and (num_groups is None or group_score == "max")
    # All scores grow with the logits: ranked by these, so that rounding of exp cannot reorder, on any device.
    ranked_TE = logits_TE if plain or scoring == "topk_softmax" else scores_TE
    if selection_bias is not None:
        ranked_TE = ranked_TE.detach() + selection_bias
    if num_groups is not None and topk_groups is not None:
        ranked_TE = limit_to_groups(ranked_TE, num_groups, topk_groups, group_score)
    # Logits that are known to be valid were read.
    ids_TK = top_k_ids(ranked_TE, top_k, readable=True if finite.all_valid and ranked_TE is logits_TE else None)
    gates_TK = gates_of_chosen(
        logits_TE, scores_TE, ids_TK, scoring=scoring, renormalize=renormalize, scaling_factor=scaling_factor
    )
    probs_TE = probabilities(logits_TE, scores_TE, scoring)
    return _Decision(finite.mark(gates_TK), ids_TK, finite.clear(probs_TE))


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
    group_score: GroupScore = "top2_sum",
    mask: Bool[Tensor, "T"] | None = None,
    with_sums: bool = True,
    with_logits: bool = True,
) -> Routed:
    """Chooses the ``top_k`` experts of largest score for every token; ties go to the lowest id.

    | scoring | score of expert e | gate of a chosen expert | probs |
    |---|---|---|---|
    | ``"softmax"`` | ``softmax(logits)_e`` | its score | the scores |
    | ``"topk_softmax"`` | ``logits_e`` | softmax over the chosen logits | ``softmax(logits)`` |
    | ``"sigmoid"`` | ``sigmoid(logits_e)`` | its score | the scores over their sum |
    | ``"sqrt_softplus"`` | ``sqrt(softplus(logits_e))`` | its score | the scores over their sum |

    Without ``selection_bias`` and sums of groups, experts are ranked by their logits, which is the same order but for
    scores that rounding makes equal. Selection has no gradient. Computed in float32, or float64 for such logits.

    Args:
        logits: Router logits.
        top_k: ``K``.
        scoring: See the table.
        renormalize: Whether the gates of a token are divided by their sum (``"topk_softmax"``: always).
        scaling_factor: Multiplies the gates, after that.
        selection_bias: Added to the scores for selection, not for the gates.
        num_groups: Splits the experts into equal groups of neighbours.
        topk_groups: Chooses within the best ``topk_groups`` groups only.
        group_score: A group's score: the sum of its two largest (DeepSeek-V3) or its largest (DeepSeek-V2), bias
            included.
        mask: True for tokens that count in the sums; all by default. It changes no gate and no id.
        with_sums: Whether to compute the sums and counts.
        with_logits: Whether to return logits and probabilities.

    Returns:
        Decision and sums.

    Raises:
        ValueError: If the arguments do not fit each other.
    """
    options = RouteOptions(
        top_k, scoring, renormalize, scaling_factor, selection_bias, num_groups, topk_groups, group_score
    )
    check_arguments(logits, options, mask)
    return decide_and_sum(logits, options, mask, with_sums, with_logits)


def decide_and_sum(
    logits: Tensor, options: RouteOptions, mask: Tensor | None, with_sums: bool, with_logits: bool = True
) -> Routed:
    """Computes :func:`route_reference` from checked arguments."""
    if logits.dtype not in (torch.float32, torch.float64):
        logits = logits.float()
    finite = finite_logits(logits)
    logits_TE, valid_T, all_valid = finite
    gates_TK, ids_TK, probs_TE = _decide(finite, options)
    returned = (logits_TE, probs_TE) if with_logits else (None, None)
    if not with_sums:
        return Routed(gates_TK, ids_TK, *returned, valid_T, None, None)
    counted_T = valid_T if mask is None else valid_T & mask
    counts = routing_counts(ids_TK, valid_T, mask, logits.shape[1], probs_TE.dtype)
    all_count = all_valid and mask is None
    sums = routing_sums(
        gates_TK, ids_TK, logits_TE, probs_TE, None if all_count else counted_T, masked=mask is not None
    )
    return Routed(gates_TK, ids_TK, *returned, valid_T, counts, sums)
