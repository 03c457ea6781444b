"""Blocks of a model computed by moekit in place: routers and experts change their class, and nothing else."""

import threading
from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call  # pyright: ignore[reportUnknownVariableType]

from moekit.changed_class import ChangedClass, changed_class
from moekit.interop.transformers._bank_forwards import (
    identity_experts_forward,
    input_gated_experts_forward,
    split_experts_forward,
)
from moekit.interop.transformers._build import empty_layer, understand
from moekit.interop.transformers._check import check_small_copy
from moekit.interop.transformers._forms import FORMS
from moekit.interop.transformers._parts import modules_of, tensor_at
from moekit.interop.transformers._read import BlockContents, form_of
from moekit.observers import RoutingEvent, notify, observed
from moekit.routers.base import Router
from moekit.routers.gate import Gate
from moekit.routers.sparse_mixer import SparseMixerRouter
from moekit.routing import Routing

_STATE = "_moekit"

# Held while a router has the tensors of a block: threads that serve one model share its routers.
_ROUTING = threading.RLock()


class Swapped(ChangedClass):
    """What every swapped module is, before the class that it had."""


class RouterState(NamedTuple):
    """What a swapped router, or block, knows.

    Attributes:
        router: Router of moekit, without weights of its own.
        weight: Name of the matrix in the router of the block.
        selection_bias: Name in the same of what is added to the scores; None where it is an argument, or there is none.
        float_logits: Whether logits and gates are returned in float32 or wider.
        experts: Those of the block, which report its decisions to observers.
    """

    router: Router
    weight: str
    selection_bias: str | None
    float_logits: bool
    experts: nn.Module


class MoekitRouter(Swapped):
    """A router of ``transformers`` computed by one of moekit, with its own weights."""

    def forward(self, hidden_states: Tensor, selection_bias: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Returns logits ``(T, E)``, gates and ids ``(T, K)``.

        Args:
            hidden_states: ``(..., D)``.
            selection_bias: ``(E,)``, of blocks that keep it outside of the router.
        """
        state: RouterState = self.__dict__[_STATE]
        if self.training and isinstance(state.router, SparseMixerRouter):
            # In training it draws experts: its own code draws the same ones as without moekit, in every dtype.
            return cast(Any, super()).forward(hidden_states)
        weight = tensor_at(self, state.weight)
        bias = cast(Tensor | None, self.bias) if self._parameters.get("bias") is not None else None
        if state.selection_bias is not None:
            selection_bias = tensor_at(self, state.selection_bias).flatten()
        rows = hidden_states.reshape(-1, hidden_states.shape[-1])
        routing = _route(state.router, rows, weight, bias, selection_bias)
        _notify(state, routing)
        logits = cast(Tensor, routing.logits)
        dtype = logits.dtype if state.float_logits else weight.dtype
        return logits.to(dtype), routing.gates.to(dtype), routing.expert_ids


def _notify(state: RouterState, routing: Routing) -> None:
    """Reports the probabilities of a router; the experts report the decisions."""
    if observed():
        event = RoutingEvent(state.experts, state.router.num_experts, probs=routing.probs, valid=routing.valid)
        notify(event)


def _route(router: Router, rows: Tensor, weight: Tensor, bias: Tensor | None, selection_bias: Tensor | None) -> Routing:
    """Calls a router with these tensors in the place of its own."""
    tensors = {"gate.layers.0.weight": weight}
    if bias is not None:
        tensors["gate.layers.0.bias"] = bias
    if selection_bias is not None:
        tensors["selection_bias"] = selection_bias.float()
    if torch.compiler.is_compiling():
        return cast(Routing, functional_call(router, tensors, (rows,)))
    with _ROUTING:
        return _route_at_once(router, tensors, rows)


def _route_at_once(router: Router, tensors: dict[str, Tensor], rows: Tensor) -> Routing:
    """Does what ``functional_call`` does without the 27 us that it takes; one thread at a time."""
    parameters = cast(dict[str, Any], cast(Gate, router.gate).layers[0]._parameters)  # pyright: ignore[reportPrivateUsage]
    buffers = cast(dict[str, Any], router._buffers)  # pyright: ignore[reportPrivateUsage]
    own = (parameters.copy(), buffers.copy())
    try:
        for name, tensor in tensors.items():
            (buffers if name == "selection_bias" else parameters)[name.rpartition(".")[2]] = tensor
        return router(rows)
    finally:
        # They belong to the block alone.
        parameters.update(own[0])
        buffers.update(own[1])


class MoekitExperts(Swapped):
    """Stacked experts of ``transformers`` computed by moekit."""

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """Returns the gate-weighted sum of every token's experts."""
        from moekit.interop.transformers._experts import experts_forward

        return experts_forward(self, hidden_states, top_k_index, top_k_weights)


class MoekitRoutingBlock(Swapped):
    """A block of DBRX, which decides by the logits that its router returns."""

    def route_tokens_to_experts(self, router_logits: Tensor) -> tuple[Tensor, Tensor]:
        """Returns gates and ids ``(T, K)``."""
        state: RouterState = self.__dict__[_STATE]
        routing: Routing = state.router(router_logits)
        _notify(state, routing)
        return routing.gates.to(router_logits.dtype), routing.expert_ids


class MoekitSplitExperts(Swapped):
    """Experts of DBRX computed by moekit."""

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """Returns the gate-weighted sum of every token's experts, of the shape of ``hidden_states``."""
        return split_experts_forward(self, hidden_states, top_k_index, top_k_weights)


class MoekitIdentityExperts(Swapped):
    """Experts of LongCat computed by moekit."""

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """Returns the gate-weighted sum of every token's experts."""
        return identity_experts_forward(self, hidden_states, top_k_index, top_k_weights)


class MoekitInputGatedBlock(Swapped):
    """A block of Llama 4, which decides by the logits that its router returns, and runs the chosen experts only."""

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the output ``(T, D)`` and the router logits ``(T, E)``."""
        state: RouterState = self.__dict__[_STATE]
        block = cast(Any, self)
        rows = hidden_states.reshape(-1, block.hidden_dim)
        _, router_logits = block.router(rows)
        routing: Routing = state.router(router_logits)
        _notify(state, routing)
        gates = routing.gates.to(router_logits.dtype)
        return block.shared_expert(rows) + block.experts(rows, routing.expert_ids, gates), router_logits


class MoekitInputGatedExperts(Swapped):
    """Experts of Llama 4 computed by moekit."""

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """Returns the sum of every token's experts, each of the token times its gate."""
        return input_gated_experts_forward(self, hidden_states, top_k_index, top_k_weights)


class _Change(NamedTuple):
    module: nn.Module
    own: type[nn.Module]


class SwappedBlocks:
    """The blocks of a model that moekit computes; also a context manager that swaps them back when it closes.

    Attributes:
        names: Of the blocks, as in ``model.named_modules()``.
    """

    def __init__(self, names: tuple[str, ...], changes: tuple[_Change, ...]) -> None:
        self.names = names
        self._changes = changes

    def restore(self) -> None:
        """Swaps the blocks back. Swapped back already, they stay as they are.

        Raises:
            ValueError: If the class of a swapped module was changed since, as by FSDP; then none is swapped back.
        """
        for module, own in self._changes:
            base = type(module).__bases__[0]
            if type(module) is not changed_class(cast(type[Swapped], base), own):
                raise ValueError(
                    f"model must hold the blocks as they were swapped, got a {type(module).__name__} in place of a "
                    f"{own.__name__}: undo what changed its class first."
                )
        for module, own in self._changes:
            module.__class__ = own
            module.__dict__.pop(_STATE, None)
        self._changes = ()

    def __enter__(self) -> "SwappedBlocks":
        return self

    def __exit__(self, *exception: object) -> None:
        self.restore()

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        return f"SwappedBlocks({', '.join(self.names)})"


def swap(model: nn.Module) -> SwappedBlocks:
    """See :func:`moekit.interop.transformers.swap_moe_blocks_`."""
    blocks = _blocks(model)
    if not blocks:
        raise ValueError(
            f"model must hold sparse blocks of transformers, got a {type(model).__name__} without any of "
            f"{', '.join(FORMS)}."
        )
    contents: dict[nn.Module, BlockContents] = {}
    for name, block in blocks.items():
        if block in contents:
            continue
        if any(isinstance(module, Swapped) for module in block.modules()):
            raise ValueError(f"model must hold blocks that are not swapped, but {name} is: restore() it first.")
        try:
            contents[block] = understand(block)
            check_small_copy(block, contents[block], _swapped_copy)
        except ValueError as refusal:
            raise ValueError(f"model must hold blocks that are understood, but {name} is not: {refusal}") from refusal
    # All are read before the first is changed.
    changes = [change for block, each in contents.items() for change in _swap_block(block, each)]
    return SwappedBlocks(tuple(blocks), tuple(changes))


def _blocks(model: nn.Module) -> dict[str, nn.Module]:
    """Returns every module that holds experts, by name."""
    return {
        name: module
        for name, module in modules_of(model).items()
        if "experts" in dict(module.named_children()) and type(module).__module__.startswith("transformers.models.")
    }


def _swapped_copy(block: nn.Module, contents: BlockContents) -> nn.Module:
    _swap_block(block, contents)
    return block


def _swap_block(block: nn.Module, contents: BlockContents) -> list[_Change]:
    form = form_of(block)
    router, experts = block.get_submodule(form.router), block.get_submodule("experts")
    layer = empty_layer(contents, "auto", "meta").eval()
    bias = form.selection_bias
    prefix = f"{form.router}."
    inside = bias.removeprefix(prefix) if bias is not None and bias.startswith(prefix) else None
    if form.experts in ("split", "input_gated"):
        layer.router.gate = nn.Identity()  # its input are the logits
        state = RouterState(layer.router, form.weight, None, form.float_logits, experts)
        if form.experts == "split":
            return [_change(block, MoekitRoutingBlock, state), _change(experts, MoekitSplitExperts)]
        return [_change(block, MoekitInputGatedBlock, state), _change(experts, MoekitInputGatedExperts)]
    state = RouterState(layer.router, form.weight, inside, form.float_logits, experts)
    bank = MoekitIdentityExperts if form.experts == "identity" else MoekitExperts
    return [_change(router, MoekitRouter, state), _change(experts, bank)]


def _change(module: nn.Module, swapped: type[Swapped], state: RouterState | None = None) -> _Change:
    own = type(module)
    if state is not None:
        module.__dict__[_STATE] = state  # not by setattr, which would take a router for a part of the model
    module.__class__ = changed_class(swapped, own)
    return _Change(module, own)
