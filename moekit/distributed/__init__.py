"""Experts over ranks, on the engine of ``torch.distributed``."""

from moekit.distributed.checkpoints import Checkpoints
from moekit.distributed.errors import ExchangeError
from moekit.distributed.expert_parallel import dropped_slots, expert_parallel_
from moekit.distributed.gradients import average_gradients_, clip_grad_norm_
from moekit.distributed.placement import ExpertPlacement, expert_placement
from moekit.distributed.rebalance import prepare_optimizer_, rebalance_

__all__ = [
    "Checkpoints",
    "ExchangeError",
    "ExpertPlacement",
    "average_gradients_",
    "clip_grad_norm_",
    "dropped_slots",
    "expert_parallel_",
    "expert_placement",
    "prepare_optimizer_",
    "rebalance_",
]
