"""An auxiliary loss that balances the experts within each sequence.

Letters: T tokens, E experts, K experts per token, B sequences, S tokens of a sequence.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from moekit.checks import check_mask
from moekit.routing import Routing
from moekit_kernels.routing.selection import top_k_ids


def sequence_balancing_loss(
    routing: Routing, num_sequences: int, *, mask: Bool[Tensor, "..."] | None = None
) -> Float[Tensor, ""]:
    """Computes ``mean over sequences of E * sum_e f_e P_e``, with shares and probabilities of that sequence alone.

    ``f_e`` is the share of the slots of ``e`` where each token of the sequence takes its ``K`` most probable experts;
    ``P_e`` is the mean probability of ``e``. 1 at balance, ``E / K`` at collapse, 0 without tokens. Only
    ``P`` has a gradient. It is a guard beside loss-free balancing, which balances batches and may leave a sequence to
    few experts.

    Args:
        routing: The decisions for ``(B, S)`` tokens, from :meth:`~moekit.SparseMoE.route`, which
            ``moe(x, routing=routing)`` then uses again.
        num_sequences: ``B``.
        mask: True for real tokens, ``T`` of them in any shape; all by default. Tokens with non-finite logits do not
            count.

    Returns:
        The loss, a scalar in float32 or wider, without a coefficient (DeepSeek-V3: 1e-4).

    Raises:
        ValueError: If the routing is expert choice or has no probabilities, or ``T`` is no multiple of
            ``num_sequences``.

    Reference:
        DeepSeek-V3, equations 17 to 20, https://arxiv.org/abs/2412.19437. As there, ``f`` counts the largest scores
        without the selection bias. Without limits of groups, and a mean over the sequences that have tokens.

    Example:
        >>> moe = SparseMoE(TopKRouter(8, 4, 2, scoring="sigmoid"), FFNExperts(8, 8, 4))
        >>> x = torch.randn(3, 16, 8)
        >>> routing = moe.route(x)
        >>> loss = 1e-4 * sequence_balancing_loss(routing, num_sequences=3)
        >>> output, stats = moe(x, routing=routing)
    """
    probs_TE = _probs(routing)
    num_tokens, num_experts = probs_TE.shape
    if num_sequences < 1 or num_tokens % num_sequences:
        raise ValueError(
            f"num_sequences must divide the {num_tokens} tokens of the routing, as all sequences are of one length, "
            f"got {num_sequences}: mask the padding."
        )
    counted_T = routing.valid
    if mask is not None:
        flat = mask.reshape(-1)
        check_mask("mask", flat, (num_tokens,))
        counted_T = counted_T & flat
    top_k = routing.expert_ids.shape[1]
    chosen_TE = torch.zeros_like(probs_TE).scatter(-1, top_k_ids(probs_TE.detach(), top_k), 1.0)
    counted_BS1 = counted_T.reshape(num_sequences, -1, 1)
    lengths_B1 = counted_BS1.sum(1)

    def mean_of(values: Tensor) -> Float[Tensor, "B E"]:
        rows = values.reshape(num_sequences, -1, num_experts)
        return torch.where(counted_BS1, rows, 0).sum(1) / lengths_B1.clamp(min=1)

    per_sequence_B = num_experts / top_k * (mean_of(chosen_TE) * mean_of(probs_TE)).sum(-1)
    return per_sequence_B.sum() / (lengths_B1 > 0).sum().clamp(min=1)


def _probs(routing: Routing) -> Float[Tensor, "T E"]:
    if routing.token_ids is not None:
        raise ValueError("routing must be of token choice, got expert choice, which balances every call by itself.")
    if routing.kept is not None:
        raise ValueError(
            "routing must have the same number of experts for every token, got one with unused slots: use "
            "dynamic_routing_losses for a DynamicTopKRouter."
        )
    if routing.probs is None:
        raise ValueError("routing must have probs, got a routing without: use TopKRouter(..., return_logits=True).")
    return routing.probs.to(torch.promote_types(routing.probs.dtype, torch.float32))
