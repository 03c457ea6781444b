"""moekit itself."""

import torch
from torch import nn

from benchmarks.peers.base import Layer, Peer, leaf
from benchmarks.workload import Workload
from moekit import FFNExperts, SparseMoE, plan_dispatch
from moekit_kernels.availability import interpreting, triton_is_installed
from moekit_kernels.impl import Impl
from moekit_kernels.moe_ffn import Recompute


class Moekit(Peer):
    """``FFNExperts`` with a plan made from the workload's ids, both timed."""

    def __init__(self, impl: Impl, recompute: Recompute | None = None) -> None:
        self.impl: Impl = impl
        self.recompute: Recompute = recompute or "activation"
        self.name = f"moekit-{impl}" + (f"-keep-{_KEEPS[recompute]}" if recompute else "")
        self.remark = f"plan_dispatch and FFNExperts, impl={impl}" + (f", recompute={recompute}" if recompute else "")
        self.graphs = impl == "triton"

    def absent(self, workload: Workload) -> str | None:
        if self.impl == "torch":
            return None
        if not triton_is_installed():
            return "triton is not installed"
        # Interpreted on CPU, in a rehearsal, kernels run too; their times mean nothing.
        if not workload.x.is_cuda and not interpreting():
            return "Triton kernels are timed on a GPU only"
        return "Triton kernels do not take float64" if workload.x.dtype == torch.float64 else None

    def build(self, workload: Workload) -> Layer:
        shape = workload.shape
        experts = FFNExperts(
            shape.dim,
            shape.hidden_dim,
            shape.num_experts,
            impl=self.impl,
            recompute=self.recompute,
            device="meta",
            dtype=workload.x.dtype,
        )
        experts.up_proj, experts.down_proj = nn.Parameter(workload.up), nn.Parameter(workload.down)
        gates = leaf(workload.gates)
        leaves = {"gates": gates, "up": experts.up_proj, "down": experts.down_proj}
        return Layer(lambda x: experts(x, plan_dispatch(workload.ids, shape.num_experts), gates), leaves)


_KEEPS: dict[Recompute, str] = {"none": "hidden", "all": "input"}


class MoekitLayer(Peer):
    """``SparseMoE`` with its defaults: router, plan, experts and statistics."""

    name = "moekit-layer"
    remark = "SparseMoE with its router and statistics, impl=auto"
    role = "whole layer"

    def absent(self, workload: Workload) -> str | None:
        return None

    def build(self, workload: Workload) -> Layer:
        shape = workload.shape
        moe = SparseMoE.ffn(
            shape.dim,
            shape.hidden_dim,
            shape.num_experts,
            shape.top_k,
            device=workload.x.device,
            dtype=workload.x.dtype,
        )
        assert isinstance(moe.experts, FFNExperts)
        with torch.no_grad():
            moe.experts.up_proj.copy_(workload.up)
            moe.experts.down_proj.copy_(workload.down)
        return Layer(lambda x: moe(x).output, dict(moe.named_parameters()))
