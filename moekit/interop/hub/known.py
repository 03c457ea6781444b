"""The parts of moekit that files name, and how the arguments that built them are read off them.

Most arguments are attributes of the same name, which hold for new parts without more than their line here.
"""

from typing import Any

import torch
from torch import nn

from moekit.changed_class import changed_class
from moekit.experts.cross_scale import CrossScaleExperts
from moekit.experts.cross_scale_expert import CrossScaleExpert
from moekit.experts.dense import FFN
from moekit.experts.ffn import FFNExperts
from moekit.experts.modules import ModuleExperts, ZeroExpert
from moekit.experts.zero_computation import ZeroComputationExperts
from moekit.fusion.attention import sdpa_attention, weighted_attention, xformers_attention
from moekit.fusion.cross_attention import BidirectionalCrossAttention
from moekit.fusion.cross_scale import CrossScaleAttention
from moekit.fusion.gate import ModalityGate
from moekit.interop.hub import known_torch
from moekit.interop.hub.registry import FUNCTIONS, RECORDS, Arguments, Reader, add_part, arguments_of, parameters_of
from moekit.interop.transformers._banks import LatentExperts
from moekit.interop.transformers._routers import EvaluationSparseMixerRouter, NormalizedTopKRouter
from moekit.interop.upcycling.layer import DropoutAfter, UpcycledMLP
from moekit.interop.upcycling.mlp import MLPLayout
from moekit.interop.upcycling.routers import MergedRouter
from moekit.layer import SparseMoE
from moekit.lora.adapter import PRODUCTS, ExpertsLoRA
from moekit.lora.banks import Adapted, adapt, adapters_of, float_dtype_of
from moekit.quantization.edit import quantize_experts_
from moekit.quantization.int8 import Int8
from moekit.routers.dynamic import DynamicTopKRouter
from moekit.routers.expert_choice import ExpertChoiceRouter
from moekit.routers.gate import Gate
from moekit.routers.hard import HardRouter
from moekit.routers.hash import HashRouter
from moekit.routers.sparse_mixer import SparseMixerRouter
from moekit.routers.top_k import TopKRouter
from moekit.soft import SoftMoE

Readers = dict[str, Reader]


def _has(*names: str) -> Reader:
    """Returns a reader that tells whether a module has something under one of some names."""
    return lambda module: any(getattr(module, name) is not None for name in names)


def _hidden_dim(router: Any) -> int | None:
    layers = router.gate.layers
    return layers[0].out_features if len(layers) == 2 else None


_GATE: Readers = {
    "dim": lambda router: router.gate.dim,
    "gate_hidden_dim": _hidden_dim,
    "gate_bias": lambda router: router.gate.layers[0].bias is not None,
    "init_scale": lambda router: router.gate.layers[0].init_scale,
}


def _any_gate(name: str) -> Reader:
    def read(router: Any) -> Any:
        if type(router.gate) is Gate:
            return None if name == "gate" else _GATE[name](router)
        # A gate of the caller's, beside which the width is that of the noise alone.
        noise = getattr(router, "noise_gate", None)
        dim = 1 if noise is None else noise.dim
        return {"dim": dim, "gate": router.gate, "gate_hidden_dim": None, "gate_bias": False, "init_scale": 0.1}[name]

    return read


_ANY_GATE: Readers = {name: _any_gate(name) for name in (*_GATE, "gate")}
_TOP_K: Readers = {
    "renormalize": lambda router: router._renormalize,
    "noisy": lambda router: router._noisy,
    "selection_bias": _has("selection_bias"),
    **_ANY_GATE,
}


def _hash_gate(name: str) -> Reader:
    """Returns a reader of an argument of learned gates; of constant ones, it is the default."""
    default = parameters_of(HashRouter)[name].default
    return lambda router: default if router.gate is None else _ANY_GATE[name](router)


_HASH: Readers = {
    "vocab_size": lambda router: router.table.shape[0],
    "renormalize": lambda router: router._renormalize,
    **{name: _hash_gate(name) for name in _ANY_GATE},
}
_read_top_k = arguments_of(TopKRouter, _TOP_K)


def _normalized(router: NormalizedTopKRouter) -> Arguments:
    inherited = {name: value for name, value in _read_top_k(router).items() if name != "renormalize"}
    return inherited | {"scaling_factor": router.scaling_after, "epsilon": router.epsilon}


def _of_attention(name: str) -> Reader:
    return lambda expert: getattr(expert.attention, name)


_SCALES: Readers = {
    **{name: _of_attention(name) for name in ("channels", "dim", "align_to", "logits_at", "hidden_dim")},
    "depth": lambda expert: len(expert.convolutions),
    "norm": lambda expert: "batch" if isinstance(expert.norms[0], nn.BatchNorm2d) else "group",
    "groups": lambda expert: getattr(expert.norms[0], "num_groups", None),
    "kernel_size": lambda expert: expert.convolutions[0].kernel_size[0],
}


_OF_BANK = ("channels", "dim", "align_to")
"""What a bank knows itself: its experts know the scales that they read only."""


def _of_first(read: Reader) -> Reader:
    return lambda bank: read(bank.experts[0])


_FFN: Readers = {
    "hidden_dim": lambda ffn: ffn.down_proj.in_features,
    "bias": lambda ffn: ffn.up_proj.bias is not None,
    "gated": _has("gate"),
}
_CROSS_ATTENTION: Readers = {
    "output_projection": _has("left_output"),
    "bias": lambda layer: layer.left_projections.query.bias is not None,
}
_MODULES: Readers = {"modules": lambda bank: list(bank.experts)}
_LATENT: Readers = {
    "dim": lambda bank: bank.into_latent.in_features,
    "latent_dim": lambda bank: bank.into_latent.out_features,
    "bias": lambda bank: bank.into_latent.bias is not None,
}


def _upcycled(module: UpcycledMLP) -> Arguments:
    return {
        "moe": module.moe,
        "output_dropouts": [] if module.dropout is None else list(module.dropout),
        "layout": module._layout,  # pyright: ignore[reportPrivateUsage]
        "shard_of_expert": module.shard_of_expert,
    }


def _dense(module: UpcycledMLP) -> nn.Module:
    return module._dense[0]  # pyright: ignore[reportPrivateUsage]


def _adapters(lora: ExpertsLoRA) -> Arguments:
    if lora.merged:
        raise ValueError("whose adapters are merged: call unmerge_lora_ to keep them or remove_lora_ to keep the sum")
    pairs = [lora.matrices(name) for name in PRODUCTS]
    # Expected is a size of each product; of one without adapters it is not read.
    shapes = tuple((0, 0, 0) if a is None or b is None else (a.shape[0], b.shape[1], a.shape[2]) for a, b in pairs)
    return {
        "shapes": shapes,
        "rank": lora.rank,
        "alpha": lora.scaling * lora.rank,
        "rank_stabilized": False,
        "dropout": lora.dropout,
        "products": tuple(name for name, (a, _) in zip(PRODUCTS, pairs, strict=True) if a is not None),
    }


def _adapted(bank: nn.Module) -> Arguments:
    read = _in_int8 if isinstance(bank, Int8) else _read_experts
    return read(bank) | {"lora": adapters_of(bank)}


def _in_int8(bank: nn.Module) -> Arguments:
    return _read_experts(bank) | {"float_dtype": float_dtype_of(bank)}


def _int8_experts(*, float_dtype: torch.dtype, **arguments: Any) -> nn.Module:
    experts: Any = FFNExperts(**arguments)
    quantize_experts_(experts)
    experts.float_dtype = float_dtype
    return experts


def _adapted_experts(*, lora: ExpertsLoRA, **arguments: Any) -> nn.Module:
    experts = _int8_experts(**arguments) if "float_dtype" in arguments else FFNExperts(**arguments)
    adapt(experts, lora)
    return experts


_read_experts = arguments_of(FFNExperts, {"bias": _has("up_bias", "down_bias")})


def register_all() -> None:
    """Registers the parts of moekit, and the layers and functions of torch."""
    known_torch.register()
    constructors: dict[type[nn.Module], Readers] = {
        BidirectionalCrossAttention: _CROSS_ATTENTION,
        CrossScaleAttention: {},
        CrossScaleExpert: _SCALES,
        CrossScaleExperts: {name: _of_first(read) for name, read in _SCALES.items() if name not in _OF_BANK},
        DynamicTopKRouter: _ANY_GATE,
        ExpertChoiceRouter: _GATE,
        FFN: _FFN,
        HardRouter: _GATE,
        HashRouter: _HASH,
        ModalityGate: {"bias": lambda gate: gate.projection.bias is not None},
        ModuleExperts: _MODULES,
        SoftMoE: {},
        SparseMixerRouter: _ANY_GATE,
        SparseMoE: {},
        TopKRouter: _TOP_K,
        ZeroComputationExperts: {},
        ZeroExpert: {},
        # Of layers that come from models of transformers, and of models that were upcycled.
        DropoutAfter: {"dropouts": lambda module: list(module.dropouts)},
        EvaluationSparseMixerRouter: _ANY_GATE,
        LatentExperts: _LATENT,
        MergedRouter: {"group_of_expert": lambda router: router.group_of_expert.tolist()},
    }
    for kind, readers in constructors.items():
        add_part(kind, f"moekit.{kind.__name__}", arguments_of(kind, readers))
    add_part(FFNExperts, "moekit.FFNExperts", _read_experts)
    int8 = changed_class(Int8, FFNExperts)
    add_part(int8, "moekit.FFNExperts in int8", _in_int8, build=_int8_experts)
    for kind, name in ((FFNExperts, "moekit.FFNExperts"), (int8, "moekit.FFNExperts in int8")):
        add_part(changed_class(Adapted, kind), f"{name} with adapters", _adapted, build=_adapted_experts)
    # The scaling is that of the adapters' alpha and rank, to the last bit.
    add_part(ExpertsLoRA, "moekit.ExpertsLoRA", _adapters, settings=("scaling", "enabled"))
    add_part(NormalizedTopKRouter, "moekit.NormalizedTopKRouter", _normalized)
    add_part(UpcycledMLP, "moekit.UpcycledMLP", _upcycled, in_place_of=_dense)
    RECORDS["moekit.MLPLayout"] = MLPLayout
    for function in (sdpa_attention, weighted_attention, xformers_attention):
        FUNCTIONS[f"moekit.{function.__name__}"] = function
