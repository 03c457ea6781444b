"""Reads a block of ``transformers``, and names all of it that has no place in a layer.

Letters: D width, E experts, F hidden width of an expert, S hidden width of the shared expert.
"""

from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple, cast

import torch.nn.functional as F
from torch import Tensor, nn

from moekit.parts import check_module

Activation = Literal["swiglu", "geglu"]
CONVERTED = (
    "MixtralSparseMoeBlock",
    "Qwen2MoeSparseMoeBlock",
    "Qwen3MoeSparseMoeBlock",
)
"""Names of the classes of ``transformers`` whose rules are known."""

# What every module has; any other entry of its dictionary is a setting, or a forward that was replaced.
_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
# The configuration only serves to build: what counts of it is in the settings. The other marks initialised modules.
_NO_RULES = ("config", "_is_hf_initialized")
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
# transformers' own hooks that only record what passes.
_RECORDING = "transformers.utils.output_capturing"


class SharedContents(NamedTuple):
    """Weights of a shared expert: ``gate_proj (S, D)``, ``up_proj (S, D)``, ``down_proj (D, S)``, ``gate (1, D)``."""

    gate_proj: Tensor
    up_proj: Tensor
    down_proj: Tensor
    gate: Tensor


class BlockContents(NamedTuple):
    """All that a block consists of.

    Attributes:
        gate: ``(E, D)``.
        gate_up_proj: ``(E, 2F, D)``, gate rows first.
        down_proj: ``(E, D, F)``.
        top_k: Experts per token.
        renormalize: Whether the gates of a token are divided by their sum.
        activation: A name of an activation of :class:`~moekit.experts.ffn.FFNExperts`.
        shared: The shared expert, or None.
    """

    gate: Tensor
    gate_up_proj: Tensor
    down_proj: Tensor
    top_k: int
    renormalize: bool
    activation: Activation
    shared: SharedContents | None


_WEIGHTS = ("gate.weight", "experts.gate_up_proj", "experts.down_proj")
_SHARED = (
    "shared_expert.gate_proj.weight",
    "shared_expert.up_proj.weight",
    "shared_expert.down_proj.weight",
    "shared_expert_gate.weight",
)
_PARTS = {"", "gate", "experts", "experts.act_fn"}
_SHARED_LINEARS = {"shared_expert.gate_proj", "shared_expert.up_proj", "shared_expert.down_proj", "shared_expert_gate"}
_SHARED_PARTS = {"shared_expert", "shared_expert.act_fn"} | _SHARED_LINEARS


def read_block(block: nn.Module) -> BlockContents:
    """Reads a block.

    Raises:
        ValueError: If it is none of :data:`CONVERTED`, or has anything else; the message names it all.
    """
    check_module("block", block)
    has_shared = "shared_expert" in dict(block.named_children())
    names = _WEIGHTS + (_SHARED if has_shared else ())
    weights = dict(block.named_parameters(remove_duplicate=False))
    missing = [name for name in names if name not in weights]
    unknown = _unknown_parts(block, names, _PARTS | (_SHARED_PARTS if has_shared else set[str]()))
    unknown += _unknown_settings(block, _settings(block, weights))
    name = type(block).__name__
    if missing or unknown or name not in CONVERTED or not type(block).__module__.startswith("transformers.models."):
        what = [f"without {', '.join(missing)}"] if missing else []
        what += [f"with {', '.join(unknown)}"] if unknown else []
        raise ValueError(
            f"block must be a {', '.join(CONVERTED[:-1])} or {CONVERTED[-1]} of transformers and have nothing that its "
            f"class does not have by default, got a {name}{''.join(' ' + each for each in what)}. Build a SparseMoE "
            "of its parts and copy the weights instead."
        )
    shared = SharedContents(*(weights[each] for each in _SHARED)) if has_shared else None
    gate, up, down = (weights[each] for each in _WEIGHTS)
    _check_shapes(gate, up, down, shared)
    router = vars(block.get_submodule("gate"))
    return BlockContents(
        gate, up, down, router["top_k"], router.get("norm_topk_prob", True), _activation(block, has_shared), shared
    )


def _unknown_parts(block: nn.Module, names: tuple[str, ...], parts: set[str]) -> list[str]:
    """Returns what a block has beyond these weights and parts, by name; of an unknown part the outermost."""
    own, unknown = type(block).__module__, list[str]()
    for path, module in _modules(block).items():
        if path not in parts:
            if not unknown or not path.startswith(unknown[-1] + "."):
                unknown.append(path)
            continue
        kind = type(module)
        of_torch = path in _SHARED_LINEARS and kind is nn.Linear
        if path and not path.endswith("act_fn") and not of_torch and kind.__module__ != own:
            unknown.append(f"{path}, a {kind.__module__}.{kind.__name__}")
    tensors = [*block.named_parameters(remove_duplicate=False), *block.named_buffers(remove_duplicate=False)]
    outside = tuple(each + "." for each in unknown)
    unknown += [name for name, _ in tensors if name not in names and not name.startswith(outside)]
    kept = [tensor.data_ptr() for name, tensor in tensors if name in names and not tensor.is_meta and tensor.numel()]
    if len(set(kept)) < len(kept):
        unknown.append("weights that share memory")
    return unknown + _hooks(block)


def _modules(block: nn.Module) -> dict[str, nn.Module]:
    # torch's own types leave it partially unknown.
    named = cast(Iterable[tuple[str, nn.Module]], block.named_modules(remove_duplicate=False))
    return dict(named)


def _hooks(block: nn.Module) -> list[str]:
    hooked = list[str]()
    for path, module in _modules(block).items():
        for kind in _HOOKS:
            hooks: Mapping[int, object] = getattr(module, kind)
            if any(getattr(hook, "__module__", "") != _RECORDING for hook in hooks.values()):
                hooked.append(f"{kind.strip('_')} on {path or 'the block'}")
    return hooked


def _check_shapes(gate: Tensor, up: Tensor, down: Tensor, shared: SharedContents | None) -> None:
    expected = got = (tuple(gate.shape), tuple(up.shape), tuple(down.shape))
    letters = "gate.weight (E, D), gate_up_proj (E, 2F, D) and down_proj (E, D, F)"
    if down.ndim == 3:
        num_experts, dim, hidden = down.shape
        expected = ((num_experts, dim), (num_experts, 2 * hidden, dim), (num_experts, dim, hidden))
    if got != expected or down.ndim != 3:
        raise ValueError(f"block must hold {letters}, got shapes {', '.join(map(str, got))}.")
    if shared is not None:
        inner, dim = shared.down_proj.shape[-1], down.shape[1]
        got, expected = (
            tuple(tuple(each.shape) for each in shared),
            ((inner, dim), (inner, dim), (dim, inner), (1, dim)),
        )
        if got != expected:
            raise ValueError(f"block's shared expert must hold shapes {expected}, got {got}.")
        if shared.gate_proj.requires_grad != shared.up_proj.requires_grad:
            raise ValueError(
                "block's shared_expert.gate_proj and up_proj become one weight: freeze both or neither, got "
                f"requires_grad {shared.gate_proj.requires_grad} and {shared.up_proj.requires_grad}."
            )


def _settings(block: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, dict[str, tuple[object, ...]]]:
    """Returns the values that each setting of each part may have; a part that is not here may have any."""
    down = weights.get("experts.down_proj")
    num_experts, dim, hidden = (None,) * 3 if down is None or down.ndim != 3 else down.shape
    top_k = getattr(dict(block.named_children()).get("gate"), "top_k", None)
    parts: dict[str, dict[str, tuple[object, ...]]] = {
        "": {"top_k": (top_k,), "num_experts": (num_experts,), "jitter_noise": (0, None)},
        "gate": {
            "top_k": tuple(range(1, (num_experts or 0) + 1)),
            "num_experts": (num_experts,),
            "hidden_dim": (dim,),
            "norm_topk_prob": (True, False),
        },
        "experts": {
            "num_experts": (num_experts,),
            "hidden_dim": (dim,),
            "intermediate_dim": (hidden,),
            "has_gate": (True,),
            "has_bias": (False,),
            "has_post_expert_norm": (False,),
            "is_transposed": (False,),
            "is_concatenated": (True,),
            "_is_expert_parallel": (False,),
        },
    }
    inner = weights.get("shared_expert.down_proj.weight")
    if inner is not None:
        parts["shared_expert"] = {"hidden_size": (dim,), "intermediate_size": (inner.shape[-1],)}
    for name in _SHARED:
        if name in weights:
            rows, columns = weights[name].shape
            parts[name.removesuffix(".weight")] = {"in_features": (columns,), "out_features": (rows,)}
    return parts


def _unknown_settings(block: nn.Module, parts: Mapping[str, Mapping[str, tuple[object, ...]]]) -> list[str]:
    """Returns settings of these parts that are not known, or have another value than any known one."""
    modules, unknown = _modules(block), list[str]()
    for path, known in parts.items():
        for name, value in vars(modules[path]).items() if path in modules else ():
            if name in _OF_EVERY_MODULE or name in _NO_RULES:
                continue
            if not any(value is each or value == each for each in known.get(name, ())):
                unknown.append(f"{path}.{name}={value!r}" if path else f"{name}={value!r}")
    return unknown


def _activation(block: nn.Module, has_shared: bool) -> Activation:
    activation = _activation_name(block.get_submodule("experts.act_fn"))
    of_shared = _activation_name(block.get_submodule("shared_expert.act_fn")) if has_shared else activation
    if of_shared != activation:
        raise ValueError(f"block must use one activation in all experts, got {activation} and {of_shared}.")
    return activation


def _activation_name(module: nn.Module) -> Activation:
    kind = type(module)
    of_transformers = kind.__module__ == "transformers.activations"
    if kind is nn.SiLU or (of_transformers and kind.__name__ == "SiLUActivation"):
        return "swiglu"
    exact = of_transformers and kind.__name__ == "GELUActivation" and vars(module).get("act") is F.gelu
    if exact or (type(module) is nn.GELU and module.approximate == "none"):
        return "geglu"
    raise ValueError(f"block must use SiLU or exact GELU in its experts, got {module!r}.")
