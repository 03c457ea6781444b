"""moekit itself."""

import inspect
import os
from typing import Any

import torch
from torch import nn

from benchmarks.peers.base import Layer, Peer, leaf
from benchmarks.workload import Workload
from moekit import FFNExperts, SparseMoE, plan_dispatch


def interpreting() -> bool:
    """Returns whether Triton's interpreter runs the kernels: for a rehearsal on CPU, whose times mean nothing."""
    return os.environ.get("TRITON_INTERPRET") == "1"


class Moekit(Peer):
    """``FFNExperts`` with a plan made from the workload's ids, both timed."""

    def __init__(self, impl: str, recompute: str | None = None) -> None:
        self.impl = impl
        self.recompute = recompute
        self.name = f"moekit-{impl}" + (f"-keep-{_KEEPS[recompute]}" if recompute else "")
        self.remark = f"plan_dispatch and FFNExperts, impl={impl}" + (f", recompute={recompute}" if recompute else "")
        self.graphs = impl == "triton"

    def absent(self, workload: Workload) -> str | None:
        if self.recompute and "recompute" not in inspect.signature(FFNExperts).parameters:
            return "this version of FFNExperts has no recompute"
        if self.impl == "torch":
            return None
        try:
            FFNExperts(8, 8, 2, impl=self.impl)  # pyright: ignore[reportArgumentType]
        except ValueError as error:
            return f"this version of FFNExperts has no impl={self.impl!r}: {error}"
        if not workload.x.is_cuda and not interpreting():
            return "Triton kernels are timed on a GPU only"
        return "Triton kernels do not take float64" if workload.x.dtype == torch.float64 else None

    def build(self, workload: Workload) -> Layer:
        shape = workload.shape
        options: dict[str, Any] = {"recompute": self.recompute} if self.recompute else {}
        experts = FFNExperts(
            shape.dim,
            shape.hidden_dim,
            shape.num_experts,
            impl=self.impl,  # pyright: ignore[reportArgumentType]
            device="meta",
            dtype=workload.x.dtype,
            **options,
        )
        experts.up_proj, experts.down_proj = nn.Parameter(workload.up), nn.Parameter(workload.down)
        gates = leaf(workload.gates)
        leaves = {"gates": gates, "up": experts.up_proj, "down": experts.down_proj}
        return Layer(lambda x: experts(x, plan_dispatch(workload.ids, shape.num_experts), gates), leaves)


_KEEPS = {"none": "hidden", "all": "input"}


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
