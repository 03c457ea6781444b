"""ScatterMoE."""

from torch import Tensor

from benchmarks.peers.base import Layer, Peer, leaf, needs_gpu, not_importable
from benchmarks.peers.plain import swiglu
from benchmarks.workload import Workload


class ScatterMoE(Peer):
    """Two ``parallel_linear`` around the activation, as in its ``GLUMLP``, with the gate rows first."""

    name = "scattermoe"
    remark = "scattermoe.parallel_linear"

    def absent(self, workload: Workload) -> str | None:
        return needs_gpu(workload, "scattermoe") or not_importable("scattermoe.parallel_experts", "scattermoe")

    def build(self, workload: Workload) -> Layer:
        from scattermoe.parallel_experts import flatten_sort_count, parallel_linear

        shape = workload.shape
        gates, up, down = leaf(workload.gates.to(workload.x.dtype)), leaf(workload.up), leaf(workload.down)

        def forward(x: Tensor) -> Tensor:
            order = flatten_sort_count(workload.ids, num_experts=shape.num_experts)
            pre = parallel_linear(x, up.permute(0, 2, 1), shape.top_k, *order, grouped_out=True)
            hidden = swiglu(pre)
            return parallel_linear(hidden, down.permute(0, 2, 1), 1, *order, gates=gates, grouped_in=True)

        return Layer(forward, {"gates": gates, "up": up, "down": down})
