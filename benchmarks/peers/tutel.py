"""Tutel's layer, its router replaced by one that gives our choice."""

from typing import Any

from torch import Tensor, nn

from benchmarks.peers.base import Layer, Peer, needs_gpu, not_importable
from benchmarks.peers.plain import swiglu
from benchmarks.workload import Workload


class Tutel(Peer):
    """``moe_layer`` with a gate of fixed logits and SwiGLU experts; dropless, padded to the fullest expert.

    Its gates are a softmax that it computes itself, so their gradient is not compared.
    """

    name = "tutel"
    remark = "tutel.moe.moe_layer, capacity_factor=0: padded to the fullest expert"
    graphs = False

    def absent(self, workload: Workload) -> str | None:
        return needs_gpu(workload, "tutel") or not_importable("tutel.moe", "tutel")

    def build(self, workload: Workload) -> Layer:
        from tutel import moe as tutel

        shape, x = workload.shape, workload.x
        logits = x.new_full((shape.tokens, shape.num_experts), float("-inf"))
        logits.scatter_(1, workload.ids, workload.gates.log().to(x.dtype))

        class Gate(nn.Module):
            def __init__(self, **_: Any) -> None:
                super().__init__()
                self.top_k, self.capacity_factor, self.gate_noise = shape.top_k, 0.0, 0.0

            def forward(self, _: Tensor) -> Tensor:
                return logits

        class Experts(nn.Module):
            def __init__(self, **_: Any) -> None:
                super().__init__()
                self.up, self.down = nn.Parameter(workload.up), nn.Parameter(workload.down)

            def forward(self, rows: Tensor, _: Any) -> Tensor:
                return swiglu(rows @ self.up.mT) @ self.down.mT

        layer = tutel.moe_layer(
            gate_type={"type": "custom", "module": Gate},
            model_dim=shape.dim,
            experts={"type": "custom", "module": Experts, "num_experts_per_device": shape.num_experts},
        ).to(x.device)
        experts = layer.experts
        assert isinstance(experts, Experts)
        return Layer(layer, {"up": experts.up, "down": experts.down})
