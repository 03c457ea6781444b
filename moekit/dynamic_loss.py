"""The losses of routing to a number of experts of each token's own."""

from typing import NamedTuple

from jaxtyping import Float, Int
from torch import Tensor

from moekit.losses import load_balancing_loss, router_entropy
from moekit.routing import RouterStats, check_stats


class DynamicRoutingLosses(NamedTuple):
    """Both terms, without coefficients; the paper's are 0.01 and 0.0001.

    Attributes:
        balance: ``E * sum_e f_e P_e``, where ``f_e`` is the share of *tokens* that use expert ``e``.
        entropy: Mean entropy of the router's probabilities, in nats.
    """

    balance: Float[Tensor, ""]
    entropy: Float[Tensor, ""]


def dynamic_routing_losses(
    stats: RouterStats, *, tokens_per_expert: Int[Tensor, "E"] | None = None, num_tokens: Int[Tensor, ""] | None = None
) -> DynamicRoutingLosses:
    """Computes the losses of a :class:`~moekit.DynamicTopKRouter`.

    ``balance`` is :func:`~moekit.load_balancing_loss` times the mean number of experts per token, because shares are
    those of tokens and not of slots: it falls with the number of experts too. At balance it is that number, and at
    collapse to one expert ``E``. ``entropy`` makes the router certain, so that few experts reach the mass: ``ln E`` at
    balance, 0 at collapse. Only the probabilities have a gradient.

    Args:
        stats: Statistics of one layer.
        tokens_per_expert: Counts to take ``f`` from instead, such as those of all micro-batches so far.
        num_tokens: Of how many tokens these counts are; needed with them.

    Returns:
        Both terms, scalars in float32 or wider; 0 without tokens.

    Raises:
        ValueError: If ``stats`` is not a :class:`~moekit.RouterStats`, ``tokens_per_expert`` is for another number of
            experts, or comes without ``num_tokens``.

    Reference:
        Huang et al. 2024, https://arxiv.org/abs/2403.07652, section 3.3.

    Example:
        >>> moe = SparseMoE(DynamicTopKRouter(8, 4, 4, mass=0.5), FFNExperts(8, 8, 4))
        >>> losses = dynamic_routing_losses(moe(torch.randn(32, 8)).stats)
        >>> bool(losses.balance > 0 and losses.entropy > 0)
        True
    """
    check_stats(stats)
    if (tokens_per_expert is None) != (num_tokens is None):
        raise ValueError(
            "tokens_per_expert and num_tokens go together: how many tokens each expert got, and of how many."
        )
    counts = stats.tokens_per_expert if tokens_per_expert is None else tokens_per_expert
    tokens = stats.num_tokens if num_tokens is None else num_tokens
    balance = load_balancing_loss(stats, tokens_per_expert=counts)
    return DynamicRoutingLosses(balance * (counts.sum() / tokens.clamp(min=1)).to(balance.dtype), router_entropy(stats))
