"""Reads a block of ``transformers``, and names all of it that has no place in a layer."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from moekit.interop.transformers._forms import FORMS, Form, Known
from moekit.interop.transformers._parts import PartsOfBlock, Shape, modules_of, parts_of, size_of
from moekit.interop.transformers._pieces import Piece, pieces_of
from moekit.interop.transformers._rules import Rule, activations_of, rule_of
from moekit.parts import check_module

# What every module has; any other entry of its dictionary is a setting, or a forward that was replaced.
_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
# The configuration only serves to build: what counts of it is in the settings. The other marks initialised modules.
_NO_RULES = ("config", "_is_hf_initialized")
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
# transformers' own hooks that only record what passes.
_RECORDING = "transformers.utils.output_capturing"
_DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
_INSTEAD = "Build a SparseMoE of its parts and copy the weights instead."


class BlockContents(NamedTuple):
    """All that a block consists of.

    Attributes:
        form: Of its class.
        rule: Of its router.
        activation: Of its experts, by name.
        shared_activation: Of its shared expert, by name; None without one.
        pieces: Each weight of the layer that it becomes, with the block's own tensors.
        parts: Names, shapes and settings.
        sizes: Of the letters in shapes.
    """

    form: Form
    rule: Rule
    activation: str
    shared_activation: str | None
    pieces: tuple[Piece, ...]
    parts: PartsOfBlock
    sizes: dict[str, int]


def read_block(block: nn.Module) -> BlockContents:
    """Reads a block.

    Raises:
        ValueError: If its class is none of :data:`FORMS`, or it has anything else; the message names it all.
    """
    form = form_of(block)
    parts = parts_of(form, block)
    tensors = _tensors(block)
    sizes = _sizes(parts.shapes, tensors)
    different = _differences(block, form)
    if different:
        raise ValueError(
            "block must have nothing that its class does not have by default, and no setting that is not understood, "
            f"got a {type(block).__name__} {different}. {_INSTEAD}"
        )
    _check_dtypes(parts.shapes, tensors)
    _check_shapes(parts.shapes, tensors, sizes)
    activation, of_shared = activations_of(block, form, parts)
    pieces = pieces_of(block, form, parts)
    for piece in pieces:
        piece.check_freezing()
    return BlockContents(form, rule_of(block, form, sizes["E"]), activation, of_shared, pieces, parts, sizes)


def form_of(block: nn.Module) -> Form:
    """Returns the form of a block's class.

    Raises:
        ValueError: If it is not known.
    """
    kind = type(check_module("block", block))
    if kind.__name__ in FORMS and kind.__module__.startswith("transformers.models."):
        return FORMS[kind.__name__]
    nearest = min(FORMS, key=lambda name: len(parts_of(FORMS[name], block).shapes.keys() ^ _tensors(block).keys()))
    different = _differences(block, FORMS[nearest])
    what = f"unlike a {nearest} {different}" if different else f"with the parts of a {nearest}, but rules not known"
    raise ValueError(
        f"block must be a sparse block of transformers whose class is known ({', '.join(FORMS)}), got a "
        f"{kind.__name__} of {kind.__module__}, {what}. {_INSTEAD}"
    )


def _differences(block: nn.Module, form: Form) -> str:
    """Returns what a block lacks of a form, and what it has beyond; empty if nothing."""
    parts, tensors = parts_of(form, block), _tensors(block)
    missing = [name for name in parts.shapes if name not in tensors]
    sizes = _sizes(parts.shapes, tensors)
    unknown = _unknown_parts(block, parts) + _unknown_settings(block, parts, sizes)
    what = [f"without {', '.join(missing)}"] if missing else []
    what += [f"with {', '.join(unknown)}"] if unknown else []
    return " ".join(what)


def _tensors(block: nn.Module) -> dict[str, Tensor]:
    parameters = block.named_parameters(remove_duplicate=False)
    return {**dict(parameters), **dict(block.named_buffers(remove_duplicate=False))}


def _sizes(shapes: Mapping[str, Shape], tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Returns the sizes of letters that stand alone as a dimension, the last tensor's where they differ."""
    sizes: dict[str, int] = {}
    for name, shape in shapes.items():
        if name in tensors and tensors[name].ndim == len(shape):
            sizes |= {letter: size for letter, size in zip(shape, tensors[name].shape, strict=True) if len(letter) == 1}
    sizes.pop("1", None)
    rows = tensors.get("experts.mlp.w2")
    if rows is not None and "E" in sizes:
        sizes["F"] = rows.shape[0] // sizes["E"]
    if "A" in sizes and "E" in sizes:
        sizes["Z"] = sizes["A"] - sizes["E"]
    return sizes


def _unknown_parts(block: nn.Module, parts: PartsOfBlock) -> list[str]:
    """Returns what a block has beyond its parts, by name; of an unknown part the outermost."""
    own, unknown = type(block).__module__, list[str]()
    known = set(parts.settings) | parts.linear | parts.identity | parts.activations
    for path, module in modules_of(block).items():
        if path not in known:
            if not unknown or not path.startswith(unknown[-1] + "."):
                unknown.append(path)
            continue
        kind = type(module)
        of_torch = (path in parts.linear and kind is nn.Linear) or (path in parts.identity and kind is nn.Identity)
        if path not in parts.activations and not of_torch and kind.__module__ != own:
            unknown.append(f"{path}, a {kind.__module__}.{kind.__name__}")
    tensors = _tensors(block)
    outside = tuple(each + "." for each in unknown)
    unknown += [name for name in tensors if name not in parts.shapes and not name.startswith(outside)]
    kept = [each for name, each in tensors.items() if name in parts.shapes and not each.is_meta and each.numel()]
    if len({each.data_ptr() for each in kept}) < len(kept):
        unknown.append("weights that share memory")
    return unknown + _hooks(block)


def _hooks(block: nn.Module) -> list[str]:
    hooked = list[str]()
    for path, module in modules_of(block).items():
        for kind in _HOOKS:
            hooks: Mapping[int, object] = getattr(module, kind)
            if any(getattr(hook, "__module__", "") != _RECORDING for hook in hooks.values()):
                hooked.append(f"{kind.strip('_')} on {path or 'the block'}")
    return hooked


def _check_dtypes(shapes: Mapping[str, Shape], tensors: Mapping[str, Tensor]) -> None:
    for name in shapes:
        if tensors[name].dtype not in _DTYPES:
            raise ValueError(
                f"block must hold weights of bfloat16, float16, float32 or float64, got {name} of "
                f"{tensors[name].dtype}: dequantise them first."
            )


def _check_shapes(shapes: Mapping[str, Shape], tensors: Mapping[str, Tensor], sizes: Mapping[str, int]) -> None:
    for name, shape in shapes.items():
        expected = tuple(size_of(each, sizes) for each in shape)
        if tuple(tensors[name].shape) != expected:
            letters = ", ".join(shape)
            raise ValueError(
                f"block must hold {name} ({letters}) of shape {expected}, got {tuple(tensors[name].shape)}."
            )


def _unknown_settings(block: nn.Module, parts: PartsOfBlock, sizes: Mapping[str, int]) -> list[str]:
    """Returns settings of the parts that are not known, or have another value than any known one."""
    unknown = list[str]()
    for path, module in modules_of(block).items():
        known = parts.settings.get(path)
        if known is None and path in parts.linear and type(module) is nn.Linear:
            known = {"in_features": (module.weight.shape[-1],), "out_features": (module.weight.shape[0],)}
        if known is None:
            continue
        for name, value in vars(module).items():
            if name in _OF_EVERY_MODULE or name in _NO_RULES:
                continue
            if not _is_known(known.get(name, ()), value, sizes):
                unknown.append(f"{path}.{name}={value!r}" if path else f"{name}={value!r}")
    return unknown + _out_of_range(block, parts, sizes)


def _is_known(known: Known, value: object, sizes: Mapping[str, int]) -> bool:
    if isinstance(known, str):
        return value == size_of(known, sizes)
    if callable(known):
        return known(value)
    return any(value is each or value == each for each in known)


def _out_of_range(block: nn.Module, parts: PartsOfBlock, sizes: Mapping[str, int]) -> list[str]:
    """Returns numbers of experts per token that cannot be, or differ between router and block."""
    counts = {path: vars(module).get("top_k") for path, module in modules_of(block).items() if path in parts.settings}
    numbers = {path: count for path, count in counts.items() if isinstance(count, int)}
    wrong = {path: each for path, each in numbers.items() if each > sizes.get("A", sizes.get("E", each))}
    if len(set(numbers.values())) > 1:
        wrong |= numbers
    return [f"{path}.top_k={each}" if path else f"top_k={each}" for path, each in wrong.items()]
