"""Activations by name or as a function, and how a hidden width becomes rows of the first matrix."""

from collections.abc import Callable
from typing import Literal

from torch import Tensor

from moekit_kernels.activations import ACTIVATIONS

ActivationName = Literal["gelu", "relu", "silu", "swiglu", "geglu", "swiglu_interleaved", "geglu_interleaved"]
ActivationLike = ActivationName | Callable[[Tensor], Tensor]


def is_gated(activation: ActivationLike) -> bool:
    """Returns whether the activation halves its input (a GLU). A function counts as not gated.

    Raises:
        ValueError: If a name is unknown.
    """
    if callable(activation):
        return False
    if activation not in ACTIVATIONS:
        raise ValueError(
            f"activation must be one of {', '.join(map(repr, ACTIVATIONS))} or a function, got {activation!r}."
        )
    return ACTIVATIONS[activation].gated


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
            f"activation must be {kind}, as the weights were built for, got {activation_label(activation)}: "
            "build other experts with it."
        )


def activation_function(activation: ActivationLike) -> Callable[[Tensor], Tensor]:
    """Returns the activation as a function ``(..., F or 2F) -> (..., F)``."""
    return activation if callable(activation) else ACTIVATIONS[activation].forward


def activation_label(activation: ActivationLike) -> str:
    """Returns how the activation is shown in a module's ``repr``."""
    return repr(activation) if isinstance(activation, str) else getattr(activation, "__name__", repr(activation))
