"""Balancing losses of the recipe, from router statistics."""

from typing import TypeVar

import torch
from torch import Tensor

from moekit import RouterStats, dynamic_routing_losses, importance_loss, load_balancing_loss, load_loss, router_z_loss
from recipes.medvlmoe.config import Balance, TrainConfig

Loss = TypeVar("Loss", Tensor, float)


class BalanceLosses:
    """Auxiliary losses over the micro-batches of one optimiser step.

    One decision per study makes the share of each expert in a single micro-batch noisy, so the Switch loss
    takes its shares from all micro-batches of the step so far (https://arxiv.org/abs/2501.11873).

    Args:
        config: Kind and coefficients.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.counts: Tensor | None = None

    def __call__(self, stats: RouterStats) -> tuple[Tensor, Tensor]:
        """Returns the balancing loss and the z-loss of a micro-batch, without coefficients."""
        counts = stats.tokens_per_expert
        self.counts = counts if self.counts is None else self.counts + counts
        return balance_loss(self.config.balance, stats, self.counts), router_z_loss(stats)

    def weighted(self, balance: Loss, z: Loss) -> Loss:
        """Adds the two up with their coefficients. A selection bias has no loss."""
        alpha = 0.0 if self.config.balance in ("bias", "fitted") else self.config.balance_weight
        return alpha * balance + self.config.z_weight * z

    def step_done(self) -> Tensor | None:
        """Ends the step; returns its counts."""
        counts, self.counts = self.counts, None
        return counts


def balance_loss(kind: Balance, stats: RouterStats, counts: Tensor) -> Tensor:
    """Computes the balancing loss by name, without its coefficient.

    Args:
        kind: ``"switch"`` (1 at balance; also what ``"bias"`` and ``"fitted"`` report), ``"cv2"`` (0 at balance), or
            ``"printed"``: the paper's ``sum_k (f_k - p_k)``, 0 whatever the router does; ``"dynamic"``: that of a
            dynamic router, over shares of the micro-batch's studies.
        stats: Of the micro-batch.
        counts: Tokens per expert, of the step so far.
    """
    if kind == "cv2":
        return importance_loss(stats) + load_loss(stats)
    if kind == "dynamic":
        return dynamic_routing_losses(stats).balance
    if kind == "printed":
        share = counts / counts.sum().clamp(min=1)
        return torch.sum(share - stats.prob_sum / stats.num_tokens.clamp(min=1))
    return load_balancing_loss(stats, tokens_per_expert=counts)
