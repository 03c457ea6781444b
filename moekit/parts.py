"""The attributes that a layer needs of the modules in its slots, read once when a slot is assigned.

Libraries replace modules by wrappers (LoRA, activation checkpointing, FSDP, quantisers, compiled modules). A wrapper
is called like what it wraps, but may hide its attributes or have others of the same name, so these are not read
through it.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple, cast

from torch import nn

from moekit_kernels.impl import IMPLS


class RouterPart(NamedTuple):
    """Attributes of a :class:`~moekit.Router` that a layer needs."""

    num_experts: int
    top_k: int
    input_ndim: int
    takes_tokens: bool = False


class ExpertsPart(NamedTuple):
    """Attributes of :class:`~moekit.Experts` that a layer needs."""

    num_experts: int
    token_ndim: int
    takes_pyramid: bool


def check_module(slot: str, value: object) -> nn.Module:
    """Returns ``value``.

    Raises:
        ValueError: If it is not a module.
    """
    if not isinstance(value, nn.Module):
        raise ValueError(f"{slot} must be an nn.Module, got a {type(value).__name__}.")
    return value


def router_part(value: object, current: nn.Module | None = None, known: RouterPart | None = None) -> RouterPart:
    """Returns the attributes of a router that is assigned to its slot.

    Args:
        value: The module that is assigned.
        current: The module that it replaces.
        known: The attributes of ``current``. They stay for a wrapper of ``current``, and where ``value`` lacks one.

    Raises:
        ValueError: If ``value`` is not a module, is a bank of experts, or lacks an attribute that is not known.
    """
    module = check_module("router", value)
    if known is not None and _wraps(module, current):
        return known
    if not hasattr(module, "input_ndim") and hasattr(module, "token_ndim"):
        raise ValueError(f"router must be a Router, got experts, {type(module).__name__}: the router comes first.")
    takes_tokens = getattr(module, "takes_tokens", getattr(known, "takes_tokens", False))  # few routers do
    numbers = _attributes("router", "Router", module, ("num_experts", "top_k", "input_ndim"), known)
    return RouterPart(*numbers, takes_tokens=bool(takes_tokens))


def experts_part(value: object, current: nn.Module | None = None, known: ExpertsPart | None = None) -> ExpertsPart:
    """Returns the attributes of experts that are assigned to their slot; see :func:`router_part`.

    Raises:
        ValueError: If ``value`` is not a module, is a router, or lacks an attribute that is not known.
    """
    module = check_module("experts", value)
    if known is not None and _wraps(module, current):
        return known
    if not hasattr(module, "token_ndim") and hasattr(module, "input_ndim"):
        raise ValueError(f"experts must be Experts, got a router, {type(module).__name__}: experts come second.")
    return ExpertsPart(*_attributes("experts", "Experts", module, ExpertsPart._fields, known))


def check_part_impl(slot: str, value: object, impl: str) -> None:
    """Raises ``ValueError`` if a part has chosen another implementation than its layer; ``"auto"`` is no choice."""
    own = getattr(value, "impl", "auto")
    if impl != "auto" and own in IMPLS and own not in ("auto", impl):
        raise ValueError(
            f"impl of the layer and of its {slot} must be the same, got impl={impl!r} and {type(value).__name__}("
            f'impl={own!r}): leave one of them "auto".'
        )


def named_modules(model: nn.Module) -> Iterable[tuple[str, nn.Module]]:
    """Returns ``model.named_modules()``."""
    # torch's own types leave it partially unknown.
    return cast(Iterable[tuple[str, nn.Module]], model.named_modules())


def _wraps(module: nn.Module, inner: nn.Module | None) -> bool:
    return inner is not None and any(each is inner for each in module.modules())


def _attributes(
    slot: str, base: str, module: nn.Module, names: tuple[str, ...], known: RouterPart | ExpertsPart | None
) -> list[Any]:
    values: list[Any] = [getattr(module, name, getattr(known, name, None)) for name in names]
    missing = [name for name, value in zip(names, values, strict=True) if not isinstance(value, int)]
    if missing:
        raise ValueError(
            f"{slot} must have the attributes {', '.join(names)}, as every moekit.{base} has, got "
            f"{type(module).__name__} without {', '.join(missing)}. Give the layer the part itself and wrap it then, "
            f"as in layer.{slot} = wrap(layer.{slot})."
        )
    return values
