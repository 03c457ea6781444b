"""Layers built of what was read of a block."""

from typing import TypedDict

import torch
from torch import Tensor, nn

from moekit.experts.base import Experts
from moekit.experts.dense import FFN
from moekit.experts.ffn import FFNExperts
from moekit.experts.zero_computation import ZeroComputationExperts
from moekit.interop.transformers._banks import LatentExperts
from moekit.interop.transformers._check import check_small_copy
from moekit.interop.transformers._parts import modules_of
from moekit.interop.transformers._pieces import Piece
from moekit.interop.transformers._read import BlockContents, read_block
from moekit.interop.transformers._routers import EvaluationSparseMixerRouter, NormalizedTopKRouter
from moekit.layer import SparseMoE
from moekit.routers.base import Router
from moekit.routers.hard import HardRouter
from moekit.routers.sparse_mixer import SparseMixerRouter
from moekit.routers.top_k import TopKRouter
from moekit_kernels.impl import Impl
from moekit_kernels.routing.options import GroupScore, Scoring


class _Place(TypedDict):
    device: torch.device
    dtype: torch.dtype


class _Options(_Place):
    scoring: Scoring
    scaling_factor: float
    num_groups: int | None
    topk_groups: int | None
    group_score: GroupScore
    selection_bias: bool
    gate_bias: bool


def _place(weight: Tensor) -> _Place:
    return {"device": weight.device, "dtype": weight.dtype}


def understand(block: nn.Module) -> BlockContents:
    """Reads a block, and checks that the layer built of it computes what the block does.

    Raises:
        ValueError: If the block has anything that is not understood.
    """
    contents = read_block(block)
    check_small_copy(block, contents, lambda _, small: build_layer(small, "reference"))
    return contents


def build_layer(contents: BlockContents, impl: Impl) -> SparseMoE:
    """Returns the layer with copies of the block's weights, each on its device, of its dtype and frozen as it is."""
    layer = empty_layer(contents, impl)
    tensors = dict(layer.named_parameters()) | dict(layer.named_buffers())
    for piece in contents.pieces:
        weight = tensors[piece.name]
        piece.read_into(weight)
        if isinstance(weight, nn.Parameter):
            weight.requires_grad_(piece.requires_grad)
    return layer


def empty_layer(contents: BlockContents, impl: Impl, device: torch.device | str | None = None) -> SparseMoE:
    """Returns the layer with weights of its own, on the devices of the block's or on another."""
    pieces = {piece.name: piece for piece in contents.pieces}
    sizes = contents.sizes

    def place(piece: Piece) -> _Place:
        where = _place(piece.first)
        return where if device is None else {"device": torch.device(device), "dtype": where["dtype"]}

    bank = "experts.experts" if "experts.experts.down_proj" in pieces else "experts"
    experts: Experts = FFNExperts(
        sizes["L"] if "L" in sizes else sizes["D"],
        sizes["F"],
        sizes["E"],
        activation=contents.activation,  # pyright: ignore[reportArgumentType]
        bias=f"{bank}.up_bias" in pieces,
        impl=impl,
        **place(pieces[f"{bank}.down_proj"]),
    )
    if "L" in sizes:
        bias = "experts.into_latent.bias" in pieces
        where = place(pieces["experts.into_latent.weight"])
        experts = LatentExperts(sizes["D"], experts, sizes["L"], bias=bias, **where)
    if contents.form.experts == "identity":
        experts = ZeroComputationExperts(experts, num_identity=sizes["Z"])
    shared = None
    if contents.shared_activation is not None:
        shared = FFN(
            sizes["D"],
            sizes["S"],
            activation=contents.shared_activation,  # pyright: ignore[reportArgumentType]
            bias="shared.up_proj.bias" in pieces,
            gated="shared.gate.weight" in pieces,
            **place(pieces["shared.down_proj.weight"]),
        )
    router = _router(contents, place(pieces["router.gate.layers.0.weight"]))
    gates_on = "inputs" if contents.form.experts == "input_gated" else "outputs"
    return SparseMoE(router, experts, shared=shared, gates_on=gates_on)


def _router(contents: BlockContents, place: _Place) -> Router:
    rule, dim = contents.rule, contents.sizes["D"]
    num_experts = contents.sizes.get("A", contents.sizes["E"])
    names = {piece.name for piece in contents.pieces}
    gate_bias, selection_bias = "router.gate.layers.0.bias" in names, "router.selection_bias" in names
    plain = rule.num_groups is None and not selection_bias and rule.scaling_factor == 1.0
    if rule.top_k == 1 and rule.renormalize and plain and rule.epsilon == 0.0:
        # A single gate divided by itself: 1, without a gradient.
        return HardRouter(dim, num_experts, gradient="none", gate_bias=gate_bias, **place)
    if rule.scoring == "sparse_mixer":
        kind = EvaluationSparseMixerRouter if rule.input_jitter > 0.0 else SparseMixerRouter
        return kind(dim, num_experts, rule.top_k, epsilon=rule.epsilon, **place)
    options = _Options(
        scoring=rule.scoring,
        scaling_factor=rule.scaling_factor,
        num_groups=rule.num_groups,
        topk_groups=rule.topk_groups,
        group_score=rule.group_score,
        selection_bias=selection_bias,
        gate_bias=gate_bias,
        device=place["device"],
        dtype=place["dtype"],
    )
    if rule.renormalize and (rule.epsilon > 0.0 or rule.top_k == 1):
        return NormalizedTopKRouter(dim, num_experts, rule.top_k, epsilon=rule.epsilon, **options)
    renormalize = None if rule.scoring == "topk_softmax" else rule.renormalize
    return TopKRouter(dim, num_experts, rule.top_k, renormalize=renormalize, **options)


def check_same_rule(layer: SparseMoE, expected: SparseMoE) -> None:
    """Checks that a layer computes what a block will, once it has the layer's weights.

    Args:
        layer: The layer whose weights will be written.
        expected: What the block would become.

    Raises:
        ValueError: Naming what differs.
    """
    mine, theirs = _description(layer), _description(expected)
    different = [name for name in mine.keys() | theirs.keys() if mine.get(name) != theirs.get(name)]
    if different:
        got = "; ".join(f"{each}: {mine.get(each)}, not {theirs.get(each)}" for each in sorted(different))
        raise ValueError(f"layer must be what the block becomes by from_transformers, got one with other parts: {got}.")


def _description(layer: SparseMoE) -> dict[str, object]:
    """Returns the shapes of all weights, and the classes and settings of all modules."""
    described: dict[str, object] = {name: tuple(each.shape) for name, each in layer.state_dict().items()}
    for name, module in modules_of(layer).items():
        text = module.extra_repr()
        # By which code it runs makes no rule.
        shown = ", ".join(each for each in text.split(", ") if not each.startswith(("impl=", "recompute=")))
        described[name or "the layer"] = f"{type(module).__name__}({shown})"
    return described
