"""The modules in an MLP, told apart by what they are; anything else is refused by name."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NoReturn, cast

import torch
from torch import Tensor, nn

from moekit.experts.activation import ActivationLike, ActivationName
from moekit.interop.upcycling.mlp import is_conv1d
from moekit_kernels.activations import activation_of

FUSED: tuple[ActivationName, ...] = ("silu", "gelu", "gelu_tanh", "relu", "relu2")
"""Activations that run fused, and whose gated forms do."""

# Functions of one number without parameters that run as an operation of their own.
_ELEMENTWISE = frozenset(
    {
        nn.CELU,
        nn.ELU,
        nn.Hardsigmoid,
        nn.Hardswish,
        nn.Hardtanh,
        nn.LeakyReLU,
        nn.Mish,
        nn.ReLU6,
        nn.SELU,
        nn.Sigmoid,
        nn.Softplus,
        nn.Softsign,
        nn.Tanh,
    }
)
_ELEMENTWISE_NAMES = frozenset(
    {
        ("transformers.activations", "QuickGELUActivation"),
        ("timm.layers.activations", "QuickGELU"),
    }
)
_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)
# Rounding in float64, and the constants of transformers' tanh-GELUs, which have ten digits.
_TOLERANCE = 1e-9


@dataclass
class MLPParts:
    """The modules in an MLP by name.

    Attributes:
        linears: Linear layers.
        dropouts: Dropouts.
        activations: Activations, with what :class:`~moekit.experts.ffn.FFNExperts` takes for each.
    """

    linears: dict[str, nn.Module] = field(default_factory=dict[str, nn.Module])
    dropouts: dict[str, nn.Dropout] = field(default_factory=dict[str, nn.Dropout])
    activations: dict[str, ActivationLike] = field(default_factory=dict[str, ActivationLike])


def refuse(name: str, module: nn.Module, why: str, advice: str = "") -> NoReturn:
    """Raises ``ValueError`` that names a module that is not understood, and what of it."""
    raise ValueError(
        f"where must match MLPs that are understood whole, but {name!r}, a {type(module).__name__}, {why}. Nothing was "
        f"changed. {advice or 'Leave it out of where, or put a module there that holds a SparseMoE of its parts.'}"
    )


def parts_of(name: str, module: nn.Module) -> MLPParts:
    """Sorts the modules in an MLP.

    Raises:
        ValueError: If there is one that is not understood, or a parameter, buffer or hook.
    """
    parts = MLPParts()
    _check_not_half(name, module)
    tensors = dict(module.named_parameters(remove_duplicate=False))
    for path, each in _named_modules(module):
        _check_plain(name, module, path, each)
        if type(each) is nn.Linear or is_conv1d(each):
            parts.linears[path] = each
        elif type(each) is nn.Dropout:
            parts.dropouts[path] = each
        elif type(each) is not nn.Identity and path and not _has_children(each):
            activation = _activation(each) if not _owns_tensors(each) else None
            if activation is None:
                refuse(name, module, f"has {path}, a {type(each).__name__}, whose function is not known")
            parts.activations[path] = activation
    known = {f"{path}.{kind}" for path in parts.linears for kind in ("weight", "bias")}
    extra = [each for each in tensors if each not in known]
    if extra:
        refuse(name, module, f"has parameters beside those of linear layers, {', '.join(extra)}")
    buffers = [each for each, _ in module.named_buffers()]
    if buffers:
        refuse(name, module, f"has buffers, {', '.join(buffers)}")
    _check_weights(name, module, tensors)
    return parts


def _check_not_half(name: str, module: nn.Module) -> None:
    linears = [path for path, each in _named_modules(module) if type(each) is nn.Linear or is_conv1d(each)]
    if len(linears) == 1:
        refuse(
            name,
            module,
            f"has one linear layer, {linears[0] or 'itself'}, where an MLP has two",
            "Name the module whose output is that of the whole MLP. Where a model splits an MLP over two modules, as "
            "BERT does (intermediate, output), first put a module there that holds both.",
        )


def _check_plain(name: str, module: nn.Module, path: str, each: nn.Module) -> None:
    place = path or "itself"
    hooks = [hook.strip("_") for hook in _HOOKS if getattr(each, hook, None)]
    if hooks:
        refuse(name, module, f"has {', '.join(hooks)} on {place}", "Remove them first, and add them to the new module.")
    if "forward" in vars(each) or vars(each).get("_compiled_call_impl") is not None:
        refuse(name, module, f"has a forward of {place} that was replaced or compiled", "Upcycle the model before.")


def _check_weights(name: str, module: nn.Module, tensors: dict[str, nn.Parameter]) -> None:
    odd = [each for each, weight in tensors.items() if type(weight) is not nn.Parameter]
    if odd:
        refuse(name, module, f"has weights that are no plain tensors, {', '.join(odd)}", "Upcycle the model before.")
    if len({id(weight) for weight in tensors.values()}) < len(tensors):
        refuse(name, module, "has layers that share a weight")
    places = {(weight.device, weight.dtype) for weight in tensors.values()}
    if len(places) > 1 or not all(weight.is_floating_point() for weight in tensors.values()):
        shown = ", ".join(sorted(f"{dtype} on {device}" for device, dtype in places))
        refuse(name, module, f"has weights of different or of no floating dtypes or devices, {shown}")


def _named_modules(module: nn.Module) -> Iterable[tuple[str, nn.Module]]:
    # torch's own types leave it partially unknown.
    return cast(Iterable[tuple[str, nn.Module]], module.named_modules(remove_duplicate=False))


def _has_children(module: nn.Module) -> bool:
    return next(module.children(), None) is not None


def _owns_tensors(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None or next(module.buffers(), None) is not None


def _activation(module: nn.Module) -> ActivationLike | None:
    """Returns what experts take for an activation: a name that gives its numbers, or the module; None if unknown."""
    x = _probe()
    try:
        with torch.inference_mode(False), torch.no_grad(), torch.random.fork_rng(devices=[]):
            y: object = module(x.clone())
    except Exception:  # it is not a function of one number
        return None
    if isinstance(y, Tensor) and y.shape == x.shape:
        for activation in FUSED:
            if bool(((activation_of(activation)(x) - y).abs() <= _TOLERANCE * (1 + y.abs())).all()):
                return activation
    kind = type(module)
    known = kind in _ELEMENTWISE or (kind.__module__, kind.__name__) in _ELEMENTWISE_NAMES
    return module if known else None


def _probe() -> Tensor:
    """Returns numbers of both signs, from 1e-3 to 1e3 in magnitude."""
    size = torch.logspace(-3, 3, 60, dtype=torch.float64, device="cpu")
    return torch.cat([-size, size])[torch.randperm(120, generator=torch.Generator().manual_seed(0))].view(8, 15)
