"""Checks of the arguments of the routing operation; they read shapes, dtypes and devices only."""

from collections.abc import Sequence

import torch
from torch import Tensor

from moekit_kernels.impl import Limits
from moekit_kernels.routing.options import GROUP_SCORES, SCORINGS, RouteOptions

LIMITS = Limits(max_experts=4096, max_top_k=64)
"""Of the kernels: a row of logits is held in registers."""

MAX_LINEAR_EXPERTS = 256
LINEAR_LIMITS = Limits(max_experts=MAX_LINEAR_EXPERTS, max_top_k=64)
"""Of the kernels with the gate's linear layer in them: a tile of the product holds all experts. With 512 the backward
kernel spills registers on every target.
"""


def check_groups(
    num_experts: int, top_k: int, num_groups: int | None, topk_groups: int | None, group_score: str
) -> None:
    """Raises ``ValueError`` unless the best ``topk_groups`` of ``num_groups`` equal groups hold ``top_k`` experts."""
    if group_score not in GROUP_SCORES:
        raise ValueError(f"group_score must be one of {', '.join(map(repr, GROUP_SCORES))}, got {group_score!r}.")
    if num_groups is None and topk_groups is None:
        if group_score != GROUP_SCORES[0]:
            raise ValueError(f"group_score={group_score!r} needs num_groups and topk_groups, got neither.")
        return
    if num_groups is None or topk_groups is None:
        raise ValueError(f"num_groups and topk_groups go together, got {num_groups} and {topk_groups}.")
    if num_groups < 1 or num_experts % num_groups:
        raise ValueError(f"num_groups must divide num_experts={num_experts}, got {num_groups}.")
    if not 1 <= topk_groups <= num_groups:
        raise ValueError(f"topk_groups must be between 1 and num_groups={num_groups}, got {topk_groups}.")
    if topk_groups * (num_experts // num_groups) < top_k:
        raise ValueError(
            f"topk_groups={topk_groups} groups of {num_experts // num_groups} experts hold fewer than top_k={top_k}."
        )


def check_arguments(logits: Tensor, options: RouteOptions, mask: Tensor | None) -> None:
    """Raises ``ValueError`` unless the arguments of :func:`~moekit_kernels.routing.route` fit each other."""
    if logits.ndim != 2 or not logits.is_floating_point():
        raise ValueError(
            f"logits must be a floating tensor of shape (T, E), got {logits.dtype} of shape {tuple(logits.shape)}."
        )
    num_tokens, num_experts = logits.shape
    check_options(num_tokens, num_experts, "the logits", logits.device, options, mask)


def check_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Raises ``ValueError`` unless tokens, weight and bias of a gate fit each other."""
    for name, value, letters in (("x", x, "T, D"), ("weight", weight, "E, D")):
        if value.ndim != 2 or not value.is_floating_point():
            raise ValueError(
                f"{name} must be a floating tensor of shape ({letters}), got {value.dtype} of shape "
                f"{tuple(value.shape)}."
            )
    num_experts = weight.shape[0]
    if weight.shape[1] != x.shape[1]:
        raise ValueError(
            f"weight must have the {x.shape[1]} columns of x, got shape {tuple(weight.shape)}: it is of shape (E, D)."
        )
    _check_companion("weight", weight, (num_experts, x.shape[1]), "x", x.device)
    if bias is not None:
        _check_companion("bias", bias, (num_experts,), "x", x.device)
        if not bias.is_floating_point():
            raise ValueError(f"bias must be of a floating dtype, got {bias.dtype}.")


def check_options(
    num_tokens: int, num_experts: int, of: str, device: torch.device, options: RouteOptions, mask: Tensor | None
) -> None:
    """Raises ``ValueError`` unless options and mask fit so many tokens and experts.

    Args:
        num_tokens: ``T``.
        num_experts: ``E``.
        of: Name of what has the experts and the device, for messages.
        device: Of the operands.
        options: Options of the routing.
        mask: Tokens that count.
    """
    top_k, scoring, selection_bias = options.top_k, options.scoring, options.selection_bias
    if not 1 <= top_k <= num_experts:
        raise ValueError(f"top_k must be between 1 and the {num_experts} experts of {of}, got {top_k}.")
    if scoring not in SCORINGS:
        raise ValueError(f"scoring must be one of {', '.join(map(repr, SCORINGS))}, got {scoring!r}.")
    check_groups(num_experts, top_k, options.num_groups, options.topk_groups, options.group_score)
    if selection_bias is not None:
        _check_companion("selection_bias", selection_bias, (num_experts,), of, device)
        if not selection_bias.is_floating_point():
            raise ValueError(f"selection_bias must be of a floating dtype, got {selection_bias.dtype}.")
    if mask is not None:
        _check_companion("mask", mask, (num_tokens,), of, device)
        if mask.dtype != torch.bool:
            raise ValueError(f"mask must be a bool tensor (True marks a token that counts), got {mask.dtype}.")


def _check_companion(name: str, value: Tensor, shape: Sequence[int], of: str, device: torch.device) -> None:
    if tuple(value.shape) != tuple(shape):
        raise ValueError(f"{name} must have shape {tuple(shape)}, got {tuple(value.shape)}.")
    if value.device != device:
        raise ValueError(f"{name} must be on the device of {of}, {device}, got {value.device}.")
