"""st-moe-pytorch: capacity-based dispatch by a one-hot tensor."""

import torch
from torch import Tensor

from benchmarks.peers.base import Layer, Peer, not_importable
from benchmarks.workload import Workload

_MOST_DISPATCH_BYTES = 4 << 30


class StMoE(Peer):
    """``MoE`` with its own router and GEGLU experts of the same hidden width, with biases.

    Its capacity factor is per token, not per slot: 1.25 K gives the usual slack; its own default of 1.25 drops
    part of the work that the others do.
    """

    role = "whole layer"
    graphs = False

    def __init__(self, dropping: bool) -> None:
        self.dropping = dropping
        self.name = "st-moe-dropping" if dropping else "st-moe"
        factor = "1.25, which drops slots" if dropping else "1.25 K"
        self.remark = f"st_moe_pytorch.MoE, own router, GEGLU with bias, capacity_factor={factor}"

    def absent(self, workload: Workload) -> str | None:
        reason = not_importable("st_moe_pytorch", "st-moe-pytorch")
        if reason is not None:
            return reason
        if workload.shape.top_k < 2:
            return "st-moe-pytorch routes to two experts or more"
        bytes_needed = 4 * workload.shape.tokens * int(self._factor(workload) * _sequence(workload))
        if bytes_needed > _MOST_DISPATCH_BYTES:
            return f"its dispatch tensor would take {bytes_needed / 2**30:.0f} GiB"
        return None

    def build(self, workload: Workload) -> Layer:
        from st_moe_pytorch import MoE

        shape = workload.shape
        torch.manual_seed(4)
        moe = MoE(
            dim=shape.dim,
            num_experts=shape.num_experts,
            # its GEGLU takes two thirds of dim times this; any number, its int annotation notwithstanding
            expert_hidden_mult=1.5 * shape.hidden_dim / shape.dim,  # pyright: ignore[reportArgumentType]
            gating_top_n=shape.top_k,
            threshold_train=0.0,
            threshold_eval=0.0,
            capacity_factor_train=self._factor(workload),
            capacity_factor_eval=self._factor(workload),
        ).to(workload.x.device, workload.x.dtype)

        def forward(x: Tensor) -> Tensor:
            return moe(x.view(-1, _sequence(workload), shape.dim))[0].view_as(x)

        return Layer(forward, {name: p for name, p in moe.named_parameters() if p.requires_grad})

    def _factor(self, workload: Workload) -> float:
        return 1.25 if self.dropping else 1.25 * workload.shape.top_k


def _sequence(workload: Workload) -> int:
    """Returns the length of a sequence: a quarter of the tokens where they can be divided so, else all."""
    tokens = workload.shape.tokens
    return tokens // 4 if tokens % 4 == 0 else tokens
