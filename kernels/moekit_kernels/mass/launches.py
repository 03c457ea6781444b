"""Starts the kernels of the limit by mass: one launch each way."""

from typing import Any

import torch
from torch import Tensor

from moekit_kernels.runtime import current_target, launch

_SLOTS = 1024
"""Slots of one program: 8 for each of its threads."""


def forward(gates: Tensor, mass: float, renormalize: bool) -> tuple[Tensor, Tensor]:
    """Computes the limited gates and which slots are kept.

    Args:
        gates: ``(T, K)`` in float32.
        mass: Above 0.
        renormalize: Whether the gates that are kept are divided by their sum.

    Raises:
        ValueError: If no kernel runs on the device of ``gates``.
    """
    current_target(gates.device)
    from moekit_kernels.mass import kernel

    limited = torch.empty(gates.shape, dtype=gates.dtype, device=gates.device)
    kept = torch.empty(gates.shape, dtype=torch.bool, device=gates.device)
    grid, tile = _tile(*gates.shape)
    arguments = {
        "gates": gates,
        "limited": limited,
        "kept": kept,
        # From 1 on all slots are kept, though rounding may make a sum of probabilities 1 before the last of them.
        "mass": mass if mass < 1 else float("inf"),
        "stride_t": gates.stride(0),
        "stride_k": gates.stride(1),
        "RENORMALIZE": renormalize,
    }
    launch(kernel.mass_fwd_kernel, grid, {**arguments, **tile})
    return limited, kept


def backward(grad: Tensor, gates: Tensor, kept: Tensor, renormalize: bool) -> Tensor:
    """Computes the gradient of the gates; ``kept`` is as :func:`forward` returned it."""
    current_target(gates.device)
    from moekit_kernels.mass import kernel

    d_gates = torch.empty(gates.shape, dtype=gates.dtype, device=gates.device)
    grid, tile = _tile(*gates.shape)
    arguments = {
        "grad": grad,
        "gates": gates,
        "kept": kept,
        "d_gates": d_gates,
        "stride_grad_t": grad.stride(0),
        "stride_grad_k": grad.stride(1),
        "stride_t": gates.stride(0),
        "stride_k": gates.stride(1),
        "RENORMALIZE": renormalize,
    }
    launch(kernel.mass_bwd_kernel, grid, {**arguments, **tile})
    return d_gates


def _tile(num_tokens: int, top_k: int) -> tuple[tuple[int], dict[str, Any]]:
    places = 1 << (top_k - 1).bit_length()
    rows = max(1, _SLOTS // places)
    return (-(-num_tokens // rows),), {"num_tokens": num_tokens, "TOP_K": top_k, "KP": places, "ROWS": rows}
