"""Checks of the arguments of the expert FFN: names, dtypes and shapes, never a value on a device."""

from typing import Any

from torch import Tensor

from moekit_kernels.activations import activation_of
from moekit_kernels.moe_ffn.operands import ExpertWeights
from moekit_kernels.plan.checks import check_gates, check_tokens
from moekit_kernels.plan.dispatch_plan import DispatchPlan

RECOMPUTE = ("activation", "none", "all")


def check_names(activation: Any, recompute: str) -> None:
    """Raises ``ValueError`` unless both are known; an activation may also be a function."""
    if not callable(activation):
        activation_of(activation)
    if recompute not in RECOMPUTE:
        raise ValueError(f"recompute must be one of {', '.join(map(repr, RECOMPUTE))}, got {recompute!r}.")


def check_dtypes(x: Tensor, weights: ExpertWeights) -> None:
    """Raises ``ValueError`` unless tokens, weights and biases are of one dtype; gates may be wider."""
    dtype = x.dtype
    for name, t in zip(ExpertWeights._fields, weights, strict=True):
        if t is not None and t.dtype != dtype:
            raise ValueError(
                f"{name} must have the dtype of x, {x.dtype}, got {t.dtype}. "
                "Convert one with .to(), or run under torch.autocast."
            )


def check_shapes(x: Tensor, gates: Tensor, plan: DispatchPlan, weights: ExpertWeights, activation: object) -> None:
    """Raises ``ValueError`` unless tokens, gates, plan and weights are those of one set of experts."""
    up_proj, down_proj, up_bias, down_bias = weights
    for name, t, rank, letters in (
        ("x", x, 2, "T, D"),
        ("up_proj", up_proj, 3, "E, F1, D"),
        ("down_proj", down_proj, 3, "E, D2, F"),
    ):
        if t.ndim != rank:
            raise ValueError(f"{name} must have shape ({letters}), got shape {tuple(t.shape)}.")
    experts, out_dim, hidden = down_proj.shape
    gated = isinstance(activation, str) and activation_of(activation).gated
    # A function may make any width of the first product its hidden width.
    up_rows = up_proj.shape[1] if callable(activation) else 2 * hidden if gated else hidden
    expected = (
        ("up_proj", up_proj, (experts, up_rows, x.shape[1])),
        ("plan.offsets", plan.offsets, (experts + 1,)),
        ("up_bias", up_bias, (experts, up_rows)),
        ("down_bias", down_bias, (experts, out_dim)),
    )
    for name, t, shape in expected:
        if t is not None and t.shape != shape:
            raise ValueError(
                f"{name} must have shape {tuple(shape)} for x {tuple(x.shape)}, down_proj {tuple(down_proj.shape)} "
                f"and activation {activation!r}, got {tuple(t.shape)}."
            )
    check_tokens(x, plan)
    check_gates(gates, plan)
