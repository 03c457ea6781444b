"""Experts over ranks, on the engine of ``torch.distributed``."""

from moekit.distributed.checkpoints import Checkpoints
from moekit.distributed.errors import ExchangeError
from moekit.distributed.expert_parallel import dropped_slots, expert_parallel_
from moekit.distributed.gradients import average_gradients_, clip_grad_norm_

__all__ = ["Checkpoints", "ExchangeError", "average_gradients_", "clip_grad_norm_", "dropped_slots", "expert_parallel_"]
