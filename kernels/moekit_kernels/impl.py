"""Which implementation of an operation computes: one vocabulary and one rule for all of them.

| ``impl`` | computes |
|---|---|
| ``"reference"`` | plain PyTorch that reads like the formula, on every device, with gradients of every order |
| ``"torch"`` | the fast form without Triton; where an operation has none of its own, its reference |
| ``"triton"`` | Triton kernels, on a GPU (or on CPU under ``TRITON_INTERPRET=1``) |
| ``"auto"`` | ``"triton"`` on a GPU where the kernels take the operands, else ``"torch"`` |

A GPU is one of CUDA or HIP, with Triton installed; there ``"auto"`` takes ``"reference"`` for float64. It is a function
of device, dtypes and sizes alone.

An explicit choice never falls back to another: what cannot run is an error. ``"reference"`` and ``"torch"`` start no
Triton kernel, neither forward nor backward.

Routing, plan and combine have one plain version, which is both ``"reference"`` and ``"torch"``. The grouped GEMM and
the expert FFN have two; their ``"torch"`` is a registered operation, on CPU too, where it is a loop over the experts.
These two resolve ``impl`` when they run, so that a program compiled or exported on CPU with ``"auto"`` runs Triton
kernels when it is moved to a GPU, and one with ``"torch"`` does not. The others resolve it when they are traced.
"""

from typing import Literal, NamedTuple, cast

import torch

from moekit_kernels.activations import activation_of
from moekit_kernels.activations.activation import label
from moekit_kernels.availability import triton_is_installed

Impl = Literal["auto", "reference", "torch", "triton"]
"""Implementation to use; see :mod:`moekit_kernels.impl`."""

Resolved = Literal["reference", "torch", "triton"]

IMPLS = ("auto", "reference", "torch", "triton")

KERNEL_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
"""Floating dtypes that Triton kernels take."""


class Limits(NamedTuple):
    """What one operation has, and what its Triton kernels take.

    Attributes:
        has_torch: Whether ``"torch"`` is a version of its own, not the reference.
        max_experts: Most experts of the kernels; None for any number.
        max_top_k: Most experts per token of the kernels; None for any number.
    """

    has_torch: bool = False
    max_experts: int | None = None
    max_top_k: int | None = None


def check_impl(impl: str) -> None:
    """Raises ``ValueError`` unless ``impl`` is one of :data:`IMPLS`."""
    if impl not in IMPLS:
        raise ValueError(f"impl must be one of {', '.join(map(repr, IMPLS))}, got {impl!r}.")


def check_sizes(impl: str, limits: Limits, *, num_experts: int, top_k: int) -> None:
    """Raises ``ValueError`` if ``impl`` is unknown, or is ``"triton"`` and the sizes are beyond its limits.

    For modules that know their sizes when they are built.
    """
    check_impl(impl)
    problem = _size_problem(limits, num_experts, top_k) if impl == "triton" else None
    if problem is not None:
        raise ValueError(_cannot(problem))


def resolve_impl(
    impl: str,
    limits: Limits,
    device: torch.device,
    *operands: tuple[str, torch.dtype],
    num_experts: int = 0,
    top_k: int = 0,
    activation: object = "",
) -> Resolved:
    """Returns which implementation ``impl`` means for one call; the table is in :mod:`moekit_kernels.impl`.

    Args:
        impl: One of :data:`IMPLS`.
        limits: Of the operation.
        device: Of its tensors.
        operands: Name and dtype of each floating operand.
        num_experts: ``E``, where the operation limits it.
        top_k: ``K``, where the operation limits it.
        activation: Name of an activation, or a function, which no kernel computes.

    Raises:
        ValueError: If ``impl`` is unknown, or ``"triton"`` cannot take the operands or is not installed.
    """
    if impl == "auto":
        if not _is_gpu(device):
            return "torch" if limits.has_torch else "reference"
        if triton_is_installed() and _problem(limits, operands, num_experts, top_k, activation) is None:
            return "triton"
        wide = any(dtype == torch.float64 for _, dtype in operands)
        return "torch" if limits.has_torch and not wide else "reference"
    check_impl(impl)
    if impl == "triton":
        if not triton_is_installed():
            raise ValueError(
                'impl="triton" needs the package triton, which is not installed: pip install triton, or use '
                'impl="auto".'
            )
        problem = _problem(limits, operands, num_experts, top_k, activation)
        if problem is not None:
            raise ValueError(_cannot(problem))
        return "triton"
    return cast(Resolved, impl) if limits.has_torch else "reference"


def _is_gpu(device: torch.device) -> bool:
    return device.type == "cuda"


def _problem(
    limits: Limits, operands: tuple[tuple[str, torch.dtype], ...], num_experts: int, top_k: int, activation: object
) -> str | None:
    """Returns why the kernels do not take this call, or None if they do."""
    for name, dtype in operands:
        if dtype not in KERNEL_DTYPES:
            return f"takes {name} of bfloat16, float16 and float32, got {dtype}"
    if not isinstance(activation, str):
        return f"needs an activation with Triton functions, got the function {label(activation)}"
    if activation and not activation_of(activation).has_triton:
        return f"needs an activation with Triton functions, got {activation!r}, which has none"
    return _size_problem(limits, num_experts, top_k)


def _size_problem(limits: Limits, num_experts: int, top_k: int) -> str | None:
    for name, value, most in (("num_experts", num_experts, limits.max_experts), ("top_k", top_k, limits.max_top_k)):
        if most is not None and value > most:
            return f"takes {name} up to {most}, got {value}"
    return None


def _cannot(problem: str) -> str:
    return f'impl="triton" {problem}: use impl="auto", "torch" or "reference".'
