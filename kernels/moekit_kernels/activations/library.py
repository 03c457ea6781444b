"""The activations of the package.

Those with parameters are functions that return an activation, the same one for the same parameters.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from moekit_kernels.activations.activation import BUILT_IN, Activation, registered
from moekit_kernels.activations.plain import GLU, Elementwise, Pair, Scalar, TimesDerivative
from moekit_kernels.activations.triton_form import TritonActivation

aten: Any = torch.ops.aten


def _in_triton(name: str, constants: tuple[float, ...] = ()) -> TritonActivation:
    """Returns the Triton functions ``name`` and ``name_with_derivatives``."""
    from moekit_kernels.activations import kernel

    functions = getattr(kernel, name), getattr(kernel, f"{name}_with_derivatives")
    return TritonActivation(*functions, constants, zero_at_zero=True)


def _gelu_backward(grad: Tensor, x: Tensor, out: Tensor) -> Tensor:
    return aten.gelu_backward.grad_input(grad, x, grad_input=out)


def _gelu_tanh_backward(grad: Tensor, x: Tensor, out: Tensor) -> Tensor:
    return aten.gelu_backward.grad_input(grad, x, approximate="tanh", grad_input=out)


def _relu_backward(grad: Tensor, x: Tensor, out: Tensor) -> Tensor:
    return aten.threshold_backward.grad_input(grad, x, 0, grad_input=out)


def _silu_backward(grad: Tensor, x: Tensor, out: Tensor) -> Tensor:
    return aten.silu_backward.grad_input(grad, x, grad_input=out)


def _gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def _relu2(x: Tensor) -> Tensor:
    return F.relu(x).square()


def _relu2_backward(grad: Tensor, x: Tensor, out: Tensor) -> Tensor:
    return torch.mul(F.relu(x).mul_(2), grad, out=out)


_SCALARS = {
    "gelu": Scalar(F.gelu, _gelu_backward, True),
    "gelu_tanh": Scalar(_gelu_tanh, _gelu_tanh_backward, True),
    "relu": Scalar(F.relu, _relu_backward, True),
    "relu2": Scalar(_relu2, _relu2_backward, True),
    "silu": Scalar(F.silu, _silu_backward, True),
}
_GLUS = {"swiglu": "silu", "geglu": "gelu", "geglu_tanh": "gelu_tanh"}


def _clamped_swiglu(gate: Tensor, value: Tensor, alpha: float, limit: float, offset: float) -> Tensor:
    gate, value = gate.clamp(max=limit), value.clamp(-limit, limit)
    return (value + offset) * (gate * torch.sigmoid(gate * alpha))


def _clamped_swiglu_derivatives(
    gate: Tensor, value: Tensor, alpha: float, limit: float, offset: float
) -> tuple[Tensor, Tensor]:
    clamped = gate.clamp(max=limit)
    sigmoid = torch.sigmoid(clamped * alpha)
    swish = clamped * sigmoid
    by_gate = (sigmoid + alpha * swish * (1 - sigmoid)) * (value.clamp(-limit, limit) + offset)
    return by_gate.mul_(gate < limit), swish.mul_(value.abs() < limit)


def clamped_swiglu(
    alpha: float = 1.702, limit: float = 7.0, interleaved: bool = True, *, offset: float = 1.0
) -> Activation:
    """Returns the activation of GPT-OSS: ``(v + offset) * g * sigmoid(alpha * g)``.

    ``g = min(gate, limit)`` and ``v = clamp(value, -limit, limit)``. With its defaults its name is
    ``"clamped_swiglu_interleaved"``, and with ``interleaved=False`` ``"clamped_swiglu"``; other parameters stand in the
    name. With ``alpha=1`` and ``offset=0`` it is SwiGLU of clamped columns.

    Args:
        alpha: Slope of the sigmoid.
        limit: Bound of gate and value.
        interleaved: Whether gate and value alternate, as GPT-OSS stores them.
        offset: Added to the clamped value.

    Returns:
        The activation; the same for the same parameters.

    Raises:
        ValueError: If ``limit`` is not positive or a parameter is not finite.

    Reference:
        OpenAI, gpt-oss-120b & gpt-oss-20b model card, 2025, https://arxiv.org/abs/2508.10925; its reference
        implementation has ``alpha=1.702`` and ``limit=7.0``.

    Example:
        >>> import torch
        >>> from moekit_kernels.activations import clamped_swiglu
        >>> clamped_swiglu()(torch.tensor([[9.0, -20.0]]))  # (-7 + 1) * 7 * sigmoid(1.702 * 7)
        tensor([[-41.9997]])
    """
    parameters, defaults = _numbers(alpha=alpha, limit=limit, offset=offset), (1.702, 7.0, 1.0)
    return _pair("clamped_swiglu", _clamped_swiglu, _clamped_swiglu_derivatives, parameters, defaults, interleaved)


def _situ(x: Tensor, beta: float) -> Tensor:
    return beta * torch.tanh(x / beta) * torch.sigmoid(x)


def _situ_derivative(x: Tensor, beta: float) -> Tensor:
    tanh, sigmoid = torch.tanh(x / beta), torch.sigmoid(x)
    return sigmoid * (1 - tanh * tanh + beta * tanh * (1 - sigmoid))


def situ(beta: float = 4.0) -> Activation:
    """Returns the Sigmoid Tanh Unit: ``beta * tanh(x / beta) * sigmoid(x)``, SiLU whose factor ``x`` is bounded.

    With its default its name is ``"situ"``; another ``beta`` stands in the name.

    Args:
        beta: Bound of the factor.

    Returns:
        The activation; the same for the same parameter.

    Raises:
        ValueError: If ``beta`` is not positive and finite.

    Reference:
        Kimi K3, equation 12, https://arxiv.org/abs/2607.24653.

    Example:
        >>> import torch
        >>> from moekit_kernels.activations import situ
        >>> situ()(torch.tensor([[0.0, 1.0, 100.0]]))
        tensor([[0.0000, 0.7162, 4.0000]])
    """
    parameters = _numbers(beta=beta)
    constants = tuple(parameters.values())
    name = _name("situ", parameters, constants == (4.0,))
    derivative = TimesDerivative(partial(_situ_derivative, **parameters))
    form = Elementwise(Scalar(partial(_situ, **parameters), derivative, True))
    return registered(name, lambda: Activation.from_form(name, form, partial(_in_triton, "situ", constants)))


def _situ_glu(gate: Tensor, value: Tensor, beta: float, value_beta: float) -> Tensor:
    return _situ(gate, beta) * (value_beta * torch.tanh(value / value_beta))


def _situ_glu_derivatives(gate: Tensor, value: Tensor, beta: float, value_beta: float) -> tuple[Tensor, Tensor]:
    tanh = torch.tanh(value / value_beta)
    return _situ_derivative(gate, beta) * (value_beta * tanh), _situ(gate, beta) * (1 - tanh * tanh)


def situ_glu(beta: float = 4.0, value_beta: float = 25.0, interleaved: bool = False) -> Activation:
    """Returns SiTU-GLU: ``situ(gate) * value_beta * tanh(value / value_beta)``, SwiGLU with both factors bounded.

    With its defaults its name is ``"situ_glu"``, with ``interleaved=True`` ``"situ_glu_interleaved"``; other parameters
    stand in the name.

    Args:
        beta: Bound of the gate's factor; see :func:`situ`.
        value_beta: Bound of the value.
        interleaved: Whether gate and value alternate.

    Returns:
        The activation; the same for the same parameters.

    Raises:
        ValueError: If ``beta`` or ``value_beta`` is not positive and finite.

    Reference:
        Kimi K3, equation 12, https://arxiv.org/abs/2607.24653.

    Example:
        >>> import torch
        >>> from moekit_kernels.activations import situ_glu
        >>> situ_glu()(torch.tensor([[100.0, 100.0]]))  # 4 * 25 * tanh(4)
        tensor([[99.9329]])
    """
    parameters = _numbers(beta=beta, value_beta=value_beta)
    return _pair("situ_glu", _situ_glu, _situ_glu_derivatives, parameters, (4.0, 25.0), interleaved)


def _numbers(**parameters: float) -> dict[str, float]:
    """Returns the parameters as floats, checked: all are finite, and all but factors and offsets positive."""
    for name, value in parameters.items():
        bounded = name not in ("alpha", "offset")
        if not math.isfinite(value) or (bounded and value <= 0):
            raise ValueError(f"{name} must be {'positive and ' if bounded else ''}finite, got {value!r}.")
    return {name: float(value) + 0.0 for name, value in parameters.items()}


def _name(family: str, parameters: dict[str, float], is_default: bool) -> str:
    shown = ", ".join(f"{name}={value!r}" for name, value in parameters.items())
    return family if is_default else f"{family}({shown})"


def _pair(
    family: str,
    function: Callable[..., Tensor],
    derivatives: Callable[..., tuple[Tensor, Tensor]],
    parameters: dict[str, float],
    defaults: tuple[float, ...],
    interleaved: bool,
) -> Activation:
    constants = tuple(parameters.values())
    name = _name(family + "_interleaved" * interleaved, parameters, constants == defaults)
    form = Pair(partial(function, **parameters), partial(derivatives, **parameters), interleaved)
    return registered(name, lambda: Activation.from_form(name, form, partial(_in_triton, family, constants)))


def _register_all() -> None:
    for name, scalar in _SCALARS.items():
        BUILT_IN.add(Activation.from_form(name, Elementwise(scalar), partial(_in_triton, name)).name)
    BUILT_IN.add(situ().name)
    for suffix, interleaved in (("", False), ("_interleaved", True)):
        for name, scalar in _GLUS.items():
            form = GLU(_SCALARS[scalar], interleaved)
            BUILT_IN.add(Activation.from_form(name + suffix, form, partial(_in_triton, scalar)).name)
        BUILT_IN.add(clamped_swiglu(interleaved=interleaved).name)
        BUILT_IN.add(situ_glu(interleaved=interleaved).name)


_register_all()
