"""Activations of experts, and how a hidden width becomes rows of the first matrix."""

from collections.abc import Callable
from typing import Literal

from torch import Tensor

from moekit_kernels.activations import Activation, activation_of
from moekit_kernels.activations.activation import label

ActivationName = Literal[
    "gelu",
    "gelu_tanh",
    "relu",
    "relu2",
    "silu",
    "situ",
    "swiglu",
    "geglu",
    "geglu_tanh",
    "clamped_swiglu",
    "situ_glu",
    "swiglu_interleaved",
    "geglu_interleaved",
    "geglu_tanh_interleaved",
    "clamped_swiglu_interleaved",
    "situ_glu_interleaved",
]
"""Names of the activations of the package, see :mod:`moekit.activations`."""

ActivationLike = ActivationName | Activation | Callable[[Tensor], Tensor]


def is_gated(activation: ActivationLike) -> bool:
    """Returns whether the activation halves its input (a GLU). A function counts as not gated.

    Raises:
        ValueError: If a name is unknown.
    """
    if callable(activation) and not isinstance(activation, Activation):
        return False
    return activation_of(activation).gated


def check_same_rows(activation: ActivationLike, *, gated: bool) -> None:
    """Checks that an activation fits weights which exist already.

    Args:
        activation: The activation that is set.
        gated: Whether the weights were built for a gated one, whose first matrix has ``2F`` rows.

    Raises:
        ValueError: If a name is unknown, or one is gated and the other is not.
    """
    if is_gated(activation) != gated:
        kind = "a gated one" if gated else "one that is not gated"
        raise ValueError(
            f"activation must be {kind}, as the weights were built for, got {label(activation)}: "
            "build other experts with it."
        )


def activation_function(activation: ActivationLike) -> Callable[[Tensor], Tensor]:
    """Returns the activation as a function ``(..., F or 2F) -> (..., F)``."""
    return activation if callable(activation) else activation_of(activation)


def why_not_fused(activation: ActivationLike, *, triton: bool) -> str | None:
    """Returns what keeps the fused kernels from an activation, as a part of a message; None if nothing does.

    Args:
        activation: The activation.
        triton: Whether the kernels are those of Triton; else of any device.
    """
    if callable(activation) and not isinstance(activation, Activation):
        return f"the function {label(activation)}"
    known = activation_of(activation)
    if known.has_triton or (known.has_derivatives and not triton):
        return None
    return f"{known!r}, which has no Triton functions" + ("" if triton else " and no derivatives")
