"""The fused MoE of Liger Kernel."""

from benchmarks.peers.base import Layer, Peer, leaf, needs_gpu, not_importable
from benchmarks.workload import Workload


class Liger(Peer):
    """``LigerFusedMoEFunction``; it reads the number of tiles on the host."""

    name = "liger"
    remark = "liger_kernel.ops.fused_moe"
    graphs = False

    def absent(self, workload: Workload) -> str | None:
        return needs_gpu(workload, "liger-kernel") or not_importable("liger_kernel.ops.fused_moe", "liger-kernel")

    def build(self, workload: Workload) -> Layer:
        from liger_kernel.ops.fused_moe import LigerFusedMoEFunction

        ids = workload.ids.int()
        gates, up, down = leaf(workload.gates.to(workload.x.dtype)), leaf(workload.up), leaf(workload.down)
        leaves = {"gates": gates, "up": up, "down": down}
        return Layer(lambda x: LigerFusedMoEFunction.apply(x, up, down, ids, gates), leaves)
