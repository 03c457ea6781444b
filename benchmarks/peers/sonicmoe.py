"""SonicMoE."""

import torch
from torch import Tensor

from benchmarks.peers.base import Layer, Peer, leaf, needs_16_bit, needs_gpu, not_importable
from benchmarks.workload import Workload


class SonicMoE(Peer):
    """``moe_general_routing_inputs`` with our routing; gate and value rows interleaved, which is its layout."""

    name = "sonicmoe"
    remark = "sonicmoe.functional.moe_general_routing_inputs"

    def absent(self, workload: Workload) -> str | None:
        return (
            needs_gpu(workload, "sonicmoe")
            or needs_16_bit(workload, "sonicmoe")
            or not_importable("sonicmoe.functional", "sonicmoe")
        )

    def build(self, workload: Workload) -> Layer:
        from sonicmoe.enums import ActivationType
        from sonicmoe.functional import moe_general_routing_inputs

        shape = workload.shape
        halves = torch.stack(workload.up.chunk(2, dim=1), dim=2)
        up, down = leaf(halves.reshape(workload.up.shape)), leaf(workload.down)
        gates = leaf(workload.gates.to(workload.x.dtype))
        experts = workload.ids.flatten().int()
        token = torch.arange(shape.tokens, device=workload.x.device, dtype=torch.int32)
        token = token.repeat_interleave(shape.top_k)

        def forward(x: Tensor) -> Tensor:
            return moe_general_routing_inputs(
                x,
                gates.flatten(),
                token,
                experts,
                up.permute(1, 2, 0),
                None,
                down.permute(1, 2, 0),
                None,
                E=shape.num_experts,
                stream_id=torch.cuda.current_stream(x.device).cuda_stream,
                activation_type=ActivationType.SWIGLU,
                is_inference_mode_enabled=not torch.is_grad_enabled(),
            )[0]

        def canonical(gradients: dict[str, Tensor]) -> dict[str, Tensor]:
            pairs = gradients["up"].view(shape.num_experts, shape.hidden_dim, 2, shape.dim)
            return gradients | {"up": pairs.transpose(1, 2).reshape(workload.up.shape)}

        return Layer(forward, {"gates": gates, "up": up, "down": down}, canonical)
