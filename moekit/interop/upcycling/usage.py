"""How much experts are used, and the sparse layers of a model by name."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn, Protocol, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from moekit.interop.upcycling.layer import UpcycledMLP
from moekit.interop.upcycling.names import matching
from moekit.layer import SparseMoE
from moekit.routing import RouterStats


class RecordedLayers(Protocol):
    """A :class:`~moekit.inspect.RoutingRecord`, or what has ``layers`` with a ``load`` each as that has."""

    layers: Any


Usage = Mapping[str, Tensor | Sequence[float] | RouterStats] | RecordedLayers
"""Loads of experts by the name of their layer, statistics of layers, or a record of :mod:`moekit.inspect`."""


class Place(NamedTuple):
    """A sparse layer in a model.

    Attributes:
        moe: The layer.
        upcycled: The module that holds it in place of an MLP, or None.
    """

    moe: SparseMoE
    upcycled: UpcycledMLP | None

    @property
    def shard_of_expert(self) -> tuple[int, ...]:
        """Which part of an MLP each expert started from."""
        return (0,) * num_experts_of(self.moe) if self.upcycled is None else self.upcycled.shard_of_expert


def num_experts_of(moe: SparseMoE) -> int:
    """Returns the number of experts of a layer."""
    return moe.experts.num_experts


def places_of(model: nn.Module, where: str | Sequence[str] | None) -> dict[str, Place]:
    """Returns the sparse layers of a model that a pattern matches, all of them by default.

    Raises:
        ValueError: If there are none, or the pattern matches other modules.
    """
    if where is None:
        # torch's own types leave it partially unknown.
        modules = dict(cast(Iterable[tuple[str, nn.Module]], model.named_modules()))
        inner = {id(module.moe) for module in modules.values() if isinstance(module, UpcycledMLP)}
        modules = {
            name: module
            for name, module in modules.items()
            if isinstance(module, UpcycledMLP) or (isinstance(module, SparseMoE) and id(module) not in inner)
        }
        if not modules:
            raise ValueError(f"model must hold sparse layers, got a {type(model).__name__} without any.")
    else:
        modules = matching(model, where)
    upcycled = {id(each.moe): each for each in model.modules() if isinstance(each, UpcycledMLP)}
    places: dict[str, Place] = {}
    for name, module in modules.items():
        if isinstance(module, UpcycledMLP):
            places[name] = Place(module.moe, module)
        elif isinstance(module, SparseMoE):
            places[name] = Place(module, upcycled.get(id(module)))
        else:
            raise ValueError(
                f"where must match layers that upcycle_ made, or SparseMoE, got {name!r}, a {type(module).__name__}."
            )
    return places


def load_of(usage: Usage, name: str, num_experts: int) -> Float[Tensor, "E"]:
    """Returns the load of each expert of a layer, float64 on CPU.

    Raises:
        ValueError: If there is none for the layer, or it is none of so many experts.
    """
    layers = cast(Mapping[str, Any], usage if isinstance(usage, Mapping) else getattr(usage, "layers", None))
    if not isinstance(layers, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ValueError(f"usage must be a record of moekit.inspect, or loads by layer, got a {type(usage).__name__}.")
    # A record names the sparse layer within, and a model that is one by its class.
    keys = [name, f"{name}.moe", name.removesuffix(".moe")] if name else ["", "SparseMoE"]
    key = next((each for each in keys if each in layers), None)
    if key is None:
        raise ValueError(f"usage must tell the load of layer {name!r}, got that of {', '.join(map(repr, layers))}.")
    entry = layers[key]
    if isinstance(entry, RouterStats):
        load = entry.tokens_per_expert
    elif isinstance(entry, Tensor | Sequence):
        load = torch.as_tensor(entry)
    else:
        load = cast(Tensor, entry.load).sum(0)
    load = load.detach().cpu().double()
    if load.shape != (num_experts,) or not bool((load >= 0).all()) or not bool(load.isfinite().all()):
        raise ValueError(
            f"usage of layer {name!r} must be {num_experts} numbers of at least 0, one for each expert, "
            f"got {load.tolist() if load.numel() <= num_experts else f'shape {tuple(load.shape)}'}."
        )
    return load


def refuse_layer(name: str, what: str) -> NoReturn:
    """Raises ``ValueError`` that names a layer which cannot be changed, and why."""
    raise ValueError(f"where must match layers whose parts are known, but {name!r} {what}. Nothing was changed.")
