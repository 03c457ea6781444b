"""Examples of every part that files name, and what holds of one that was saved and loaded."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moekit import (
    FFN,
    BidirectionalCrossAttention,
    CrossScaleAttention,
    CrossScaleExpert,
    CrossScaleExperts,
    DynamicTopKRouter,
    ExpertChoiceRouter,
    FFNExperts,
    HardRouter,
    HashRouter,
    ModalityGate,
    ModuleExperts,
    SoftMoE,
    SparseMixerRouter,
    SparseMoE,
    TopKRouter,
    ZeroComputationExperts,
    ZeroExpert,
    xformers_attention,
)
from moekit.activations import clamped_swiglu, glu
from moekit.interop.hub import from_pretrained, save_pretrained
from moekit.interop.transformers._banks import LatentExperts
from moekit.interop.transformers._routers import EvaluationSparseMixerRouter, NormalizedTopKRouter
from moekit.interop.upcycling.layer import DropoutAfter
from moekit.interop.upcycling.routers import MergedRouter
from moekit.lora import add_lora_
from moekit.quantization import quantize_experts_

DIM, HIDDEN, EXPERTS, TOP_K, TOKENS = 8, 6, 4, 2, 10
MAPS = ((8, 8, 8), (16, 4, 4))


class Example(NamedTuple):
    """A part and what it is called with."""

    build: Callable[[], nn.Module]
    arguments: Callable[[], tuple[Any, ...]] = lambda: (torch.randn(TOKENS, DIM),)
    options: Callable[[], dict[str, Any]] = dict


def _router(**options: Any) -> TopKRouter:
    return TopKRouter(DIM, EXPERTS, TOP_K, **options)


def _experts(num_experts: int = EXPERTS, dim: int = DIM, **options: Any) -> FFNExperts:
    return FFNExperts(dim, HIDDEN, num_experts, **options)


def _modules() -> ModuleExperts:
    shared = nn.Linear(DIM, DIM)
    deep = nn.Sequential(
        nn.Linear(DIM, HIDDEN, bias=False), nn.GELU("tanh"), nn.LayerNorm(HIDDEN), nn.Linear(HIDDEN, DIM)
    )
    return ModuleExperts([shared, deep, ZeroExpert(), nn.Identity(), FFN(DIM, HIDDEN), shared], out_shape=(DIM,))


def _changed() -> SparseMoE:
    """A layer whose settings were changed after it was built."""
    layer = SparseMoE(_router(), _experts(), shared=FFN(DIM, 5, gated=True, bias=True))
    layer.capacity_factor, layer.drop_policy, layer.gates_on = 1.25, "gate", "inputs"
    layer.router.top_k, layer.router.renormalize, layer.router.scoring = 3, False, "sigmoid"
    layer.experts.activation, layer.experts.recompute = glu("relu"), "all"
    return layer


def _one_bias() -> FFNExperts:
    """Experts with the bias of one layer alone, as upcycling may build them."""
    experts = _experts(bias=True)
    nn.init.normal_(experts.up_bias)
    experts.down_bias = None
    return experts


def _adapted() -> SparseMoE:
    """A layer whose experts have adapters, of which one product has none."""
    layer = SparseMoE(_router(), _experts(activation="gelu", bias=True))
    add_lora_(layer, rank=3, alpha=7.0, rank_stabilized=True, products=("down",), dropout=0.1, freeze=False)
    return layer


def _in_int8(*, adapters: bool = False) -> SparseMoE:
    """A layer in bfloat16 whose experts are integers."""
    layer = SparseMoE(_router(), _experts(bias=True).bfloat16())
    nn.init.normal_(layer.experts.up_proj)
    quantize_experts_(layer)
    if adapters:
        add_lora_(layer, rank=2, freeze=False)
    return layer


def _tokens(dtype: torch.dtype) -> Callable[[], tuple[Tensor]]:
    return lambda: (torch.randn(TOKENS, DIM, dtype=dtype),)


def _maps() -> tuple[list[Tensor]]:
    return ([torch.randn(3, *each) for each in MAPS],)


CHANNELS = tuple(each[0] for each in MAPS)

EXAMPLES = {
    "layer": Example(lambda: SparseMoE.ffn(DIM, HIDDEN, EXPERTS, TOP_K)),
    "changed settings": Example(_changed),
    "biases": Example(
        lambda: SparseMoE(_router(gate_bias=True, selection_bias=True), _experts(bias=True, activation="gelu"))
    ),
    "one bias": Example(lambda: SparseMoE(_router(), _one_bias())),
    "noisy": Example(lambda: SparseMoE(_router(noisy=True), _experts(init_scale=0.3))),
    "hidden gate": Example(lambda: SparseMoE(_router(gate_hidden_dim=5, init_scale=0.7), _experts())),
    "gate of torch": Example(lambda: SparseMoE(_router(gate=nn.Linear(DIM, EXPERTS), noisy=True), _experts())),
    "groups": Example(
        lambda: SparseMoE(
            _router(scoring="sigmoid", num_groups=2, topk_groups=1, scaling_factor=2.5, jitter=0.1), _experts()
        )
    ),
    "clamped activation": Example(
        lambda: SparseMoE(_router(), _experts(activation=clamped_swiglu(1.25, 3.5, interleaved=False, offset=0.5)))
    ),
    "function": Example(lambda: SparseMoE(_router(), _experts(activation=F.softplus))),
    "module as activation": Example(lambda: SparseMoE(_router(), _experts(activation=nn.LeakyReLU(0.2)))),
    "dropout after": Example(
        lambda: SparseMoE(_router(), _experts(activation=DropoutAfter("gelu", [nn.Dropout(0.2)])))
    ),
    "expert choice": Example(
        lambda: SparseMoE(ExpertChoiceRouter(DIM, EXPERTS, capacity_factor=1.5, gate_bias=True), _experts())
    ),
    "hard": Example(lambda: SparseMoE(HardRouter(DIM, EXPERTS, gradient="straight_through"), _experts())),
    "hash": Example(
        lambda: SparseMoE(HashRouter(EXPERTS, 50, TOP_K, frequencies=torch.rand(50), seed=3), _experts()),
        options=lambda: {"router_input": torch.arange(TOKENS)},
    ),
    "hash with learned gates": Example(
        lambda: SparseMoE(
            HashRouter(EXPERTS, 50, TOP_K, dim=DIM, scoring="sqrt_softplus", renormalize=False, gate_hidden_dim=3),
            _experts(),
        ),
        options=lambda: {"router_input": torch.arange(TOKENS)},
    ),
    "hash with a gate of torch": Example(
        lambda: SparseMoE(HashRouter(EXPERTS, 50, TOP_K, dim=DIM, gate=nn.Linear(DIM, EXPERTS)), _experts()),
        options=lambda: {"router_input": torch.arange(TOKENS)},
    ),
    "modules": Example(lambda: SparseMoE(TopKRouter(DIM, 6, TOP_K), _modules())),
    "soft": Example(
        lambda: SoftMoE(DIM, _experts(), slots_per_expert=2), arguments=lambda: (torch.randn(2, TOKENS, DIM),)
    ),
    "maps": Example(
        lambda: SparseMoE(
            HardRouter(5, 3), CrossScaleExperts(CHANNELS, DIM, 3, depth=2, norm="group", groups=2, kernel_size=1)
        ),
        arguments=_maps,
        options=lambda: {"router_input": torch.randn(3, 5)},
    ),
    "some maps": Example(
        lambda: SparseMoE(HardRouter(5, 3), CrossScaleExperts(CHANNELS, DIM, 3, depth=1, scales=(1,), align_to=-1)),
        arguments=_maps,
        options=lambda: {"router_input": torch.randn(3, 5)},
    ),
    "expert of maps": Example(lambda: CrossScaleExpert(CHANNELS, DIM, align_to=0, hidden_dim=3), arguments=_maps),
    "attention over maps": Example(lambda: CrossScaleAttention(CHANNELS, DIM, logits_at="aligned"), arguments=_maps),
    "cross-attention": Example(
        lambda: BidirectionalCrossAttention(
            DIM, left_dim=5, num_heads=2, output_projection=False, bias=False, attention=xformers_attention
        ),
        arguments=lambda: (torch.randn(2, 3, 5), torch.randn(2, 4, DIM)),
        options=lambda: {"need_weights": True},  # computed without xFormers, which is for GPUs
    ),
    "gate of modalities": Example(
        lambda: ModalityGate((3, 5), per="modality", bias=True, initial_gate=0.8),
    ),
    "adapters": Example(_adapted),
    "int8": Example(_in_int8, _tokens(torch.bfloat16)),
    "int8 and adapters": Example(lambda: _in_int8(adapters=True), _tokens(torch.bfloat16)),
    "merged": Example(lambda: SparseMoE(MergedRouter(_router(), [0, 1, 1, 0]), _experts(2))),
    "zero-computation experts": Example(
        lambda: SparseMoE(TopKRouter(DIM, 7, 2), ZeroComputationExperts(_experts(), num_zero=1, num_identity=2))
    ),
    "latent experts": Example(lambda: SparseMoE(_router(), LatentExperts(DIM, _experts(dim=4), 4, bias=True))),
    "epsilon": Example(
        lambda: SparseMoE(
            NormalizedTopKRouter(DIM, EXPERTS, TOP_K, epsilon=1e-3, scaling_factor=2.0, scoring="sigmoid"), _experts()
        )
    ),
    "best of a group": Example(
        lambda: SparseMoE(
            _router(scoring="sqrt_softplus", num_groups=2, topk_groups=1, group_score="max", scaling_factor=3.0),
            _experts(),
        )
    ),
    "dynamic number of experts": Example(
        lambda: SparseMoE(
            DynamicTopKRouter(DIM, EXPERTS, 3, mass=0.6, renormalize=True, jitter=0.1, gate_bias=True), _experts()
        )
    ),
    "sparse mixer": Example(
        lambda: SparseMoE(SparseMixerRouter(DIM, EXPERTS, 3, epsilon=0.1, jitter=0.2, gate_bias=True), _experts())
    ),
    "sparse mixer in evaluation": Example(
        lambda: SparseMoE(EvaluationSparseMixerRouter(DIM, EXPERTS, epsilon=0.1), _experts())
    ),
}


def names_in(description: Any) -> set[str]:
    """Returns the names of the parts in a json."""
    if isinstance(description, dict):
        own = {description["part"]} if isinstance(description.get("part"), str) else set()
        return own.union(*map(names_in, description.values()))
    return set().union(*map(names_in, description)) if isinstance(description, list) else set()


def description_in(folder: Path) -> dict[str, Any]:
    """Returns the json of a folder."""
    return json.loads((folder / "moekit.json").read_text())


def randomized(module: nn.Module) -> nn.Module:
    """Returns a module in evaluation mode whose tensors are no starting values of any constructor."""
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if tensor.is_floating_point() and not name.endswith("stored_scaling"):  # which says how they were made
                tensor.normal_().abs_() if tensor.ndim == 1 else tensor.normal_()
    return module.eval()


def tensors_of(output: Any) -> list[Tensor]:
    """Returns the floating tensors of an output."""
    if isinstance(output, Tensor):
        return [output] if output.is_floating_point() else []
    return [each for part in output or () for each in tensors_of(part)]


def run(module: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]) -> tuple[list[Tensor], list[Any]]:
    """Returns output tensors of a module and the gradients of all its parameters."""
    module.zero_grad()
    outputs = tensors_of(module(*arguments, **options))
    sum(each.square().sum() for each in outputs if each.requires_grad).backward()
    return [each.detach() for each in outputs], [parameter.grad for parameter in module.parameters()]


def assert_same(mine: nn.Module, theirs: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
    """Checks that two modules have one ``repr``, state, output and gradient, bit for bit."""
    assert repr(theirs) == repr(mine)
    state, expected = theirs.state_dict(), mine.state_dict()
    assert list(state) == list(expected)
    for name, tensor in expected.items():
        assert state[name].dtype == tensor.dtype
        assert torch.equal(state[name], tensor), name
    for each, other in zip(run(theirs, arguments, options), run(copy.deepcopy(mine), arguments, options), strict=True):
        for tensor, same in zip(each, other, strict=True):
            assert (tensor is None) == (same is None)
            assert tensor is None or torch.equal(tensor, same)


def saved_and_loaded(module: nn.Module, folder: Path) -> nn.Module:
    """Returns a module that went through files."""
    save_pretrained(module, folder)
    return from_pretrained(folder)
