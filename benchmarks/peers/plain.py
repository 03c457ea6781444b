"""What needs PyTorch alone: dense networks of as many operations, a loop over experts, ``F.grouped_mm``."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.peers.base import Layer, Peer, leaf
from benchmarks.workload import Workload


def swiglu(pre: Tensor) -> Tensor:
    """Returns ``silu(gate) * value`` of columns that are gates, then values."""
    gate, value = pre.chunk(2, dim=-1)
    return F.silu(gate) * value


class Dense(Peer):
    """A SwiGLU network of hidden width ``K F`` on all tokens: as many operations, nothing to route."""

    role = "ceiling"

    def __init__(self, compiled: bool) -> None:
        self.compiled = compiled
        self.name = "dense-compiled" if compiled else "dense"
        self.remark = "one FFN of hidden width K F" + (", its activation compiled" if compiled else "")

    def absent(self, workload: Workload) -> str | None:
        return "the compiled activation is for GPUs" if self.compiled and not workload.x.is_cuda else None

    def build(self, workload: Workload) -> Layer:
        shape, x = workload.shape, workload.x
        width = shape.top_k * shape.hidden_dim
        generator = torch.Generator(x.device).manual_seed(3)

        def normal(rows: int, columns: int) -> Tensor:
            weight = torch.empty(rows, columns, device=x.device, dtype=x.dtype)
            return weight.normal_(std=1 / math.sqrt(columns), generator=generator).requires_grad_()

        up, down = normal(2 * width, shape.dim), normal(shape.dim, width)
        activation = torch.compile(swiglu, dynamic=True) if self.compiled else swiglu
        return Layer(lambda x: F.linear(activation(F.linear(x, up)), down), {"up": up, "down": down}, lambda _: {})


class ExpertLoop(Peer):
    """For each expert its tokens are looked up, computed, weighted and added."""

    name = "expert-loop"
    remark = "a Python loop over experts"
    graphs = False

    def absent(self, workload: Workload) -> str | None:
        return None

    def build(self, workload: Workload) -> Layer:
        gates, up, down = leaf(workload.gates), leaf(workload.up), leaf(workload.down)

        def forward(x: Tensor) -> Tensor:
            output = torch.zeros_like(x)
            for expert in range(workload.shape.num_experts):
                token, place = torch.where(workload.ids == expert)
                y = F.linear(swiglu(F.linear(x[token], up[expert])), down[expert])
                output = output.index_add(0, token, (y * gates[token, place, None]).to(x.dtype))
            return output

        return Layer(forward, {"gates": gates, "up": up, "down": down})


class GroupedMM(Peer):
    """``F.grouped_mm`` as torchtitan uses it: argsort, index, three products, scatter_add.

    Three matrices an expert, the gates applied in float32.
    """

    name = "grouped_mm"
    remark = "argsort, index, F.grouped_mm, scatter_add, as in torchtitan"

    def absent(self, workload: Workload) -> str | None:
        if not hasattr(F, "grouped_mm"):
            return f"torch {torch.__version__} has no F.grouped_mm"
        if workload.x.dtype == torch.float64:
            return "F.grouped_mm does not take float64"
        widths = {workload.shape.dim, workload.shape.hidden_dim}
        if any(width * workload.x.itemsize % 16 for width in widths):
            return "F.grouped_mm needs rows of a multiple of 16 bytes"
        return None

    def build(self, workload: Workload) -> Layer:
        shape = workload.shape
        gates, down = leaf(workload.gates), leaf(workload.down)
        gate_proj, value_proj = (leaf(half.contiguous()) for half in workload.up.chunk(2, dim=1))
        bounds = torch.arange(shape.num_experts, device=workload.x.device)

        def forward(x: Tensor) -> Tensor:
            flat = workload.ids.flatten()
            order = flat.argsort(stable=True)
            offsets = torch.searchsorted(flat[order], bounds, right=True, out_int32=True)
            token = order // shape.top_k
            rows = x[token]
            hidden = F.silu(F.grouped_mm(rows, gate_proj.mT, offs=offsets))
            hidden = hidden * F.grouped_mm(rows, value_proj.mT, offs=offsets)
            y = F.grouped_mm(hidden, down.mT, offs=offsets)
            weighted = (y.float() * gates.flatten()[order, None]).to(x.dtype)
            return torch.zeros_like(x).scatter_add(0, token[:, None].expand(-1, shape.dim), weighted)

        def canonical(gradients: dict[str, Tensor]) -> dict[str, Tensor]:
            up = torch.cat((gradients["gate_proj"], gradients["value_proj"]), dim=1)
            return {"gates": gradients["gates"], "up": up, "down": gradients["down"]}

        leaves = {"gates": gates, "gate_proj": gate_proj, "value_proj": value_proj, "down": down}
        return Layer(forward, leaves, canonical)
