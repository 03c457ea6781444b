"""MegaBlocks, with its grouped GEMM (its block-sparse one does not run with Triton 3.2 and later)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.peers.base import Layer, Peer, leaf, needs_16_bit, needs_gpu, not_importable
from benchmarks.workload import Workload


class MegaBlocks(Peer):
    """``ParallelDroplessMLP`` of its dMoE layer, with our routing; it reads the counts on the host."""

    name = "megablocks"
    remark = "dMoE's ParallelDroplessMLP, mlp_impl=grouped"
    graphs = False

    def absent(self, workload: Workload) -> str | None:
        return (
            needs_gpu(workload, "megablocks")
            or needs_16_bit(workload, "megablocks")
            or not_importable("grouped_gemm", "grouped_gemm, which megablocks needs,")
            or not_importable("megablocks.layers.dmoe", "megablocks")
        )

    def build(self, workload: Workload) -> Layer:
        from megablocks.layers.arguments import Arguments
        from megablocks.layers.dmoe import ParallelDroplessMLP

        shape, dtype = workload.shape, workload.x.dtype
        arguments = Arguments(
            hidden_size=shape.dim,
            ffn_hidden_size=shape.hidden_dim,
            bias=False,
            activation_fn=F.silu,
            moe_num_experts=shape.num_experts,
            moe_top_k=shape.top_k,
            mlp_type="glu",
            mlp_impl="grouped",
            fp16=dtype == torch.float16,
            bf16=dtype == torch.bfloat16,
            device=workload.x.device,
        )
        experts = ParallelDroplessMLP(arguments)
        mlp = experts.mlp
        gate_proj, value_proj = workload.up.chunk(2, dim=1)
        with torch.no_grad():
            mlp.w1.copy_(gate_proj.reshape(-1, shape.dim))
            mlp.v1.copy_(value_proj.reshape(-1, shape.dim))
            mlp.w2.copy_(workload.down.mT.reshape(-1, shape.dim))
        gates = leaf(workload.gates.to(dtype))

        def canonical(gradients: dict[str, Tensor]) -> dict[str, Tensor]:
            w1, v1, w2 = (gradients[name].view(shape.num_experts, -1, shape.dim) for name in ("w1", "v1", "w2"))
            return {"gates": gradients["gates"], "up": torch.cat((w1, v1), dim=1), "down": w2.mT}

        leaves = {"gates": gates, "w1": mlp.w1, "v1": mlp.v1, "w2": mlp.w2}
        return Layer(lambda x: experts.forward_once(x, gates, workload.ids)[0], leaves, canonical)
