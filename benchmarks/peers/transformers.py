"""The experts of Hugging Face ``transformers``, and its whole sparse block, in each of its implementations."""

from typing import Any

import torch
from torch import nn

from benchmarks.peers.base import Layer, Peer, leaf, not_importable
from benchmarks.workload import Workload
from moekit.interop import register_experts

# batched_mm copies the weights of an expert for every slot; beyond this it is of no use.
_MOST_COPIED_BYTES = {"cuda": 8 << 30, "cpu": 1 << 30}


class Transformers(Peer):
    """``MixtralExperts`` with ``experts_implementation`` eager, grouped_mm, batched_mm or, of this package, moekit."""

    def __init__(self, implementation: str) -> None:
        self.implementation = implementation
        self.name = f"transformers-{implementation}"
        self.remark = "MixtralExperts of transformers"
        self.graphs = implementation != "eager"

    def absent(self, workload: Workload) -> str | None:
        reason = not_importable("transformers.models.mixtral.modeling_mixtral", "transformers")
        if reason is not None:
            return reason
        from transformers.models.mixtral import modeling_mixtral

        if not hasattr(modeling_mixtral, "MixtralExperts"):
            return "this version of transformers has no MixtralExperts"
        copied = workload.shape.weight_bytes(workload.shape.slots, workload.x.itemsize)
        if self.implementation == "batched_mm" and copied > _MOST_COPIED_BYTES[workload.x.device.type]:
            return f"it copies an expert's weights for every slot: {copied / 2**30:.0f} GiB here"
        return None

    def build(self, workload: Workload) -> Layer:
        from transformers.models.mixtral.modeling_mixtral import MixtralExperts

        with torch.device("meta"):
            experts = MixtralExperts(self.config(workload))
        experts.gate_up_proj, experts.down_proj = nn.Parameter(workload.up), nn.Parameter(workload.down)
        gates = leaf(workload.gates.to(workload.x.dtype))
        leaves = {"gates": gates, "up": experts.gate_up_proj, "down": experts.down_proj}
        return Layer(lambda x: experts(x, workload.ids, gates), leaves)

    def config(self, workload: Workload) -> Any:
        """Returns the configuration of a layer of the workload's sizes."""
        from transformers import MixtralConfig

        shape = workload.shape
        config = MixtralConfig(
            hidden_size=shape.dim,
            intermediate_size=shape.hidden_dim,
            num_local_experts=shape.num_experts,
            num_experts_per_tok=shape.top_k,
        )
        if self.implementation == "moekit":
            register_experts()
        config._experts_implementation = self.implementation
        return config


class TransformersBlock(Transformers):
    """``MixtralSparseMoeBlock``: the same experts with a router of their own, without statistics."""

    role = "whole layer"

    def __init__(self, implementation: str) -> None:
        super().__init__(implementation)
        self.name = f"transformers-block-{implementation}"
        self.remark = "MixtralSparseMoeBlock of transformers with its router, no statistics"

    def build(self, workload: Workload) -> Layer:
        from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

        block = MixtralSparseMoeBlock(self.config(workload)).to(workload.x)
        with torch.no_grad():
            block.gate.weight.normal_(std=0.1 / workload.shape.dim**0.5)
            block.experts.gate_up_proj.copy_(workload.up)
            block.experts.down_proj.copy_(workload.down)
        return Layer(lambda x: block(x.unsqueeze(0)).squeeze(0), dict(block.named_parameters()))
