"""Recognises the activation of experts of ``transformers`` among those that the fused expert FFN computes.

Experts with a gate compute ``_apply_gate(pre-activation)``, a method that a model may define as it likes; the others
``act_fn(pre-activation)``. A name of :data:`moekit_kernels.activations.ACTIVATIONS` stands for either only if

- ``act_fn`` is of a class whose function is known, and
- ``_apply_gate``, called on a stand-in that has that function and a few settings and nothing else, gives the numbers of
  that activation, in float64, on random values of all magnitudes.

So a method that reads anything else, computes anything else or rounds to another dtype is not recognised, and the
experts run unfused.
"""

from collections.abc import Callable
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes  # pyright: ignore[reportPrivateUsage]
from transformers.activations import (
    GELUActivation,
    GELUTanh,
    NewGELUActivation,
    ReLUSquaredActivation,
    SiLUActivation,
)

from moekit_kernels.activations import ACTIVATIONS, clamped_swiglu
from moekit_kernels.activations.activation import BUILT_IN

Setting = float | int | bool | str | None

SETTINGS = ("limit", "alpha", "swiglu_limit", "swiglu_alpha")
"""What a gate may read of its module beside ``act_fn``, and still be recognised."""

# Of these exact classes; a subclass or a wrapper may compute anything. nn.GELU has a setting of its own.
_NAMES: dict[object, str] = {
    nn.SiLU: "silu",
    SiLUActivation: "silu",
    F.silu: "silu",
    nn.ReLU: "relu",
    F.relu: "relu",
    GELUActivation: "gelu",
    F.gelu: "gelu",
    GELUTanh: "gelu_tanh",
    NewGELUActivation: "gelu_tanh",
    ReLUSquaredActivation: "relu2",
}

# Whoever hooks it wants its calls.
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")

_ROWS, _HIDDEN = 128, 16
# Both sides compute the same few operations in float64.
_TOLERANCE = 1e-12

_recognised: dict[tuple[object, ...], str | None] = {}


def fused_activation(experts: nn.Module) -> str | None:
    """Returns the activation by which the backend runs these experts fused, or None if it runs them unfused.

    Args:
        experts: A module of ``transformers`` whose class is decorated with ``use_experts_implementation``.

    Returns:
        Its name.
    """
    if getattr(experts, "has_post_expert_norm", False):
        return None
    act = _function_name(getattr(experts, "act_fn", None))
    if not getattr(experts, "has_gate", True):
        return act or None
    attributes = vars(experts)  # a module takes 1 µs to find that it has no attribute
    if "_apply_gate" in attributes:
        return None
    settings = tuple([attributes.get(name) for name in SETTINGS])
    return _recognise(type(experts)._apply_gate, act, *settings)  # pyright: ignore


# The gated activation that multiplies a function of the gate by the value.
_GATED = {"silu": "swiglu", "gelu": "geglu", "gelu_tanh": "geglu_tanh"}


def activation_name(act: object, *, gated: bool) -> str | None:
    """Returns the activation of ``act(x)``, or of ``act(gate) * value``; None if it is not known."""
    name = _function_name(act)
    return _GATED.get(name) if gated else name or None


def _function_name(act: object) -> str:
    """Returns the name of a function of one number, or ``""``."""
    if not isinstance(act, nn.Module):
        return _NAMES.get(act, "")
    if any(getattr(act, hooks) for hooks in _HOOKS):
        return ""
    if type(act) is nn.GELU:
        return "gelu" if act.approximate == "none" else "gelu_tanh"
    return _NAMES.get(type(act), "")


# The compiler calls it with constants, and takes what it returns for one.
@torch.compiler.assume_constant_result
def _recognise(apply_gate: Callable[..., Tensor], act: str, *settings: Setting) -> str | None:
    key = (apply_gate, act, *settings)
    if key not in _recognised:
        _recognised[key] = _matching(apply_gate, act, dict(zip(SETTINGS, settings, strict=True)))
    return _recognised[key]


def _matching(apply_gate: Callable[..., Tensor], act: str, settings: dict[str, Setting]) -> str | None:
    """Returns the name of the gated activation that gives the numbers of ``apply_gate``."""
    stand_in = SimpleNamespace(**{name: value for name, value in settings.items() if value is not None})
    if act:
        stand_in.act_fn = ACTIVATIONS[act]
    # Real numbers on CPU, also where tensors are fake or on the meta device.
    with _disable_current_modes(), torch.no_grad(), torch.autocast("cpu", enabled=False):
        pre = _probe()
        try:
            gated = apply_gate(stand_in, pre.clone())
        except Exception:  # it reads what the stand-in has not: it is not understood
            return None
        if type(gated) is not Tensor or gated.shape != (_ROWS, _HIDDEN):
            return None
        for name in sorted(BUILT_IN):
            if ACTIVATIONS[name].gated and _equal(gated, ACTIVATIONS[name](pre)):
                return name
        return _matching_clamped(gated, pre, settings)


def _matching_clamped(gated: Tensor, pre: Tensor, settings: dict[str, Setting]) -> str | None:
    """Returns the name of the clamped SwiGLU of these settings that gives the numbers of ``gated``."""
    limit = settings["limit"] if settings["swiglu_limit"] is None else settings["swiglu_limit"]
    alpha = settings["alpha"] if settings["swiglu_alpha"] is None else settings["swiglu_alpha"]
    if not isinstance(limit, float | int) or limit <= 0:
        return None
    slope = float(alpha) if isinstance(alpha, float | int) else 1.0
    halves = {False: pre.chunk(2, dim=-1), True: (pre[:, ::2], pre[:, 1::2])}
    for interleaved, (gate, value) in halves.items():
        g, v = gate.clamp(max=limit), value.clamp(-limit, limit)
        for offset in (0.0, 1.0):
            if _equal(gated, (v + offset) * g * (slope * g).sigmoid()):
                return clamped_swiglu(slope, float(limit), interleaved, offset=offset).name
    return None


def _probe() -> Tensor:
    """Returns random numbers of both signs, from 1e-3 to 1e6 in magnitude."""
    generator = torch.Generator().manual_seed(0)
    exponents, signs = torch.rand(2, _ROWS, 2 * _HIDDEN, generator=generator, dtype=torch.float64, device="cpu")
    return 10 ** (9 * exponents - 3) * (signs - 0.5).sign()


def _equal(a: Tensor, b: Tensor) -> bool:
    return bool(((a - b).abs() <= _TOLERANCE * (1 + b.abs())).all())
