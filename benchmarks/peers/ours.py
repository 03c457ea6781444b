"""moekit itself."""

from typing import Any, Literal

import torch
from torch import nn

from benchmarks.peers.base import Layer, Peer, leaf
from benchmarks.workload import Workload
from moekit import FFNExperts, SparseMoE, graphed, plan_dispatch
from moekit_kernels.availability import interpreting, triton_is_installed
from moekit_kernels.impl import Impl
from moekit_kernels.moe_ffn import Recompute


class Moekit(Peer):
    """``FFNExperts`` with a plan made from the workload's ids, both timed.

    With ``biases`` both linear layers have one, of zeros, so that the function is the same; it gets its gradient.
    """

    def __init__(self, impl: Impl, recompute: Recompute | None = None, biases: bool = False) -> None:
        self.impl: Impl = impl
        self.biases = biases
        self.recompute: Recompute = recompute or "activation"
        self.name = f"moekit-{impl}" + (f"-keep-{_KEEPS[recompute]}" if recompute else "")
        self.remark = f"plan_dispatch and FFNExperts, impl={impl}" + (f", recompute={recompute}" if recompute else "")
        if biases:
            self.name, self.remark = f"{self.name}-biases", f"{self.remark}, biases"
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
            bias=self.biases,
            device="meta",
            dtype=workload.x.dtype,
        )
        experts.up_proj, experts.down_proj = nn.Parameter(workload.up), nn.Parameter(workload.down)
        gates = leaf(workload.gates)
        leaves = {"gates": gates, "up": experts.up_proj, "down": experts.down_proj}
        if self.biases:
            experts.up_bias = nn.Parameter(workload.up.new_zeros(shape.num_experts, 2 * shape.hidden_dim))
            experts.down_bias = nn.Parameter(workload.down.new_zeros(shape.num_experts, shape.dim))
            leaves |= {"up_bias": experts.up_bias, "down_bias": experts.down_bias}

        def compared(gradients: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            return {name: gradients[name] for name in ("gates", "up", "down")}

        return Layer(lambda x: experts(x, plan_dispatch(workload.ids, shape.num_experts), gates), leaves, compared)


_KEEPS: dict[Recompute, str] = {"none": "hidden", "all": "input"}


Start = Literal["eager", "compiled", "graphed"]
"""How a layer's kernels are started: one by one from Python, by ``torch.compile``, or from a CUDA graph."""


class MoekitLayer(Peer):
    """``SparseMoE`` with its defaults: router, plan, experts, and statistics unless they are left out."""

    role = "whole layer"

    def __init__(self, start: Start = "eager", stats: bool = True) -> None:
        self.start: Start = start
        self.stats = stats
        self.name = "moekit-layer" + ("" if start == "eager" else f"-{start}") + ("" if stats else "-no-stats")
        summed = "and statistics" if stats else "but no statistics"
        self.remark = f"SparseMoE with its router {summed}, impl=auto{_STARTS[start]}"
        self.graphs = start == "eager"

    def absent(self, workload: Workload) -> str | None:
        if self.start != "eager" and not workload.x.is_cuda:
            return "started in another way than eagerly it is for GPUs"
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
        leaves = dict(moe.named_parameters())
        run: Any = moe
        if self.start == "compiled":
            run = torch.compile(moe)
        if self.start == "graphed":
            sample = workload.x.detach().clone().requires_grad_()
            run = graphed(moe, sample)
        options: dict[str, Any] = {} if self.stats else {"stats": False}  # a captured layer takes the tokens alone
        return Layer(lambda x: run(x, **options).output, leaves)


_STARTS: dict[Start, str] = {
    "eager": "",
    "compiled": ", torch.compile",
    "graphed": ", moekit.graphed",
}
