"""``moekit::combine`` and ``moekit::combine_backward``: schema, fake, autograd, and which way is taken."""

import math
from typing import Any, Literal, NoReturn

import torch
from jaxtyping import Float, Int
from torch import Tensor

from moekit_kernels.availability import triton_is_installed
from moekit_kernels.combine import launches
from moekit_kernels.combine.reference import combine_by_token_reference, combine_reference
from moekit_kernels.forward_mode import refuse_forward_mode
from moekit_kernels.precision import KERNEL_DTYPES

Impl = Literal["auto", "torch", "triton"]
IMPLS = ("auto", "torch", "triton")


@torch.library.custom_op("moekit::combine", mutates_args=())
def _combine(
    rows: Tensor, row: Tensor, starts: Tensor | None, gates: Tensor | None, slot: Tensor | None, num_tokens: int
) -> Tensor:
    return launches.forward(rows, row, starts, gates, slot, None, num_tokens)


@torch.library.custom_op("moekit::combine_backward", mutates_args=())
def _combine_backward(
    grad: Tensor,
    rows: Tensor,
    row: Tensor,
    starts: Tensor | None,
    gates: Tensor | None,
    slot: Tensor | None,
    rows_grad: bool,
    gates_grad: bool,
) -> list[Tensor]:
    found = launches.backward(grad, rows, row, starts, gates, slot, None, rows_grad, gates_grad)
    return [gradient for gradient in found if gradient is not None]


@_combine.register_fake
def _(
    rows: Tensor, row: Tensor, starts: Tensor | None, gates: Tensor | None, slot: Tensor | None, num_tokens: int
) -> Tensor:
    return rows.new_empty(num_tokens, rows.shape[1])


@_combine_backward.register_fake
def _(
    grad: Tensor,
    rows: Tensor,
    row: Tensor,
    starts: Tensor | None,
    gates: Tensor | None,
    slot: Tensor | None,
    rows_grad: bool,
    gates_grad: bool,
) -> list[Tensor]:
    found = [rows.new_empty(rows.shape)] if rows_grad else []
    return [*found, gates.new_empty(gates.shape)] if gates is not None and gates_grad else found


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:5])


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    needs_rows, needs_gates = ctx.needs_input_grad[0], ctx.needs_input_grad[3]
    refuse_forward_mode("combine", grad, remedy='impl="torch"')
    found = _combine_backward(grad, *ctx.saved_tensors, needs_rows, needs_gates)
    return (
        found[0] if needs_rows else None,
        None,
        None,
        found[-1] if needs_gates else None,
        None,
        None,
    )


def _no_second_order(ctx: Any, *grads: Any) -> NoReturn:
    raise RuntimeError('combine has first-order gradients only; for higher orders use impl="torch".')


def _save_nothing(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None: ...


_combine.register_autograd(_backward, setup_context=_save)
_combine_backward.register_autograd(_no_second_order, setup_context=_save_nothing)


def resolve_impl(impl: str, rows: Tensor, gates: Tensor | None) -> Literal["torch", "triton"]:
    """What ``impl`` means for these rows and gates.

    ``"auto"`` is ``"triton"`` where both are on a GPU (CUDA or HIP) in float32, bfloat16 or float16, if Triton is
    installed; else ``"torch"``. An explicit choice is never changed.

    Raises:
        ValueError: If ``impl`` is unknown, or ``"triton"`` was asked for and is not installed or lacks a dtype.
    """
    if impl not in IMPLS:
        raise ValueError(f"impl must be one of {', '.join(map(repr, IMPLS))}, got {impl!r}.")
    if impl == "torch":
        return "torch"
    given = [(name, t.dtype) for name, t in (("rows", rows), ("gates", gates)) if t is not None]
    unknown = [(name, dtype) for name, dtype in given if dtype not in KERNEL_DTYPES]
    if impl == "auto":
        return "triton" if rows.device.type == "cuda" and triton_is_installed() and not unknown else "torch"
    if not triton_is_installed():
        raise ValueError('impl="triton" needs the package triton, which is not installed: use impl="auto".')
    if unknown:
        name, dtype = unknown[0]
        raise ValueError(
            f'impl="triton" takes {name} of float32, bfloat16 or float16, got {dtype}: use impl="auto" or "torch".'
        )
    return "triton"


def combine(
    rows: Float[Tensor, "N *D"],
    row: Int[Tensor, "T K"],
    gates: Float[Tensor, "T K"] | None,
    *,
    impl: Impl = "auto",
) -> Float[Tensor, "T *D"]:
    """``out[t] = sum over k of gates[t, k] * rows[row[t, k]]``, deterministic.

    Args:
        rows: What the experts made of each row, of any trailing shape; their result has this dtype.
        row: The row of each slot, each in ``[0, N)``, none twice.
        gates: Weight of each slot; None for ones.
        impl: ``"torch"``: :func:`combine_reference`, products and sums in the wider dtype of rows and gates, gradients
            of every order. ``"triton"``: one kernel each way, products and sums in float32 and in the order of ``k``,
            first-order gradients. ``"auto"`` picks by :func:`resolve_impl`.

    Returns:
        One output per token.

    Raises:
        ValueError: If ``row`` or ``gates`` has a wrong shape, or ``impl`` is unknown or cannot run.

    Example:
        >>> combine(torch.tensor([[1.0], [10.0]]), torch.tensor([[0, 1]]), torch.tensor([[0.25, 0.75]])).item()
        7.75
    """
    if row.ndim != 2 or row.numel() != rows.shape[0]:
        raise ValueError(
            f"row must have shape (T, K), one for each of the {rows.shape[0]} rows, got {tuple(row.shape)}."
        )
    if gates is not None and gates.shape != row.shape:
        raise ValueError(f"gates must have the shape of row, {tuple(row.shape)}, got {tuple(gates.shape)}.")
    if resolve_impl(impl, rows, gates) == "torch":
        return combine_reference(rows, row, gates)
    refuse_forward_mode("combine", rows, gates, remedy='impl="torch"')
    out = _combine(_matrix(rows), row, None, gates, None, row.shape[0])
    return out.view(row.shape[0], *rows.shape[1:])


def combine_by_token(
    rows: Float[Tensor, "N *D"],
    token: Int[Tensor, "N"],
    slot: Int[Tensor, "N"],
    gates: Float[Tensor, "*slots"] | None,
    num_tokens: int,
    *,
    impl: Impl = "auto",
) -> Float[Tensor, "T *D"]:
    """``out[token[r]] += gates[slot[r]] * rows[r]`` over the rows in their order, deterministic.

    For expert choice, where a token has any number of rows. The kernel finds the rows of each token by a stable sort
    of ``token``, without asking the device.

    Args:
        rows: What the experts made of each row, of any trailing shape; their result has this dtype.
        token: The token of each row, each in ``[0, num_tokens)``.
        slot: The flat index of each row's gate, each in ``[0, N)``, none twice.
        gates: ``N`` weights of any shape; None for ones.
        num_tokens: ``T``.
        impl: As in :func:`combine`.

    Returns:
        One output per token; zero for a token without rows.

    Raises:
        ValueError: If ``token``, ``slot`` or ``gates`` has a wrong size, or ``impl`` is unknown or cannot run.
    """
    num_rows = rows.shape[0]
    for name, t in (("token", token), ("slot", slot)):
        if t.shape != (num_rows,):
            raise ValueError(f"{name} must have shape ({num_rows},), one for each row, got {tuple(t.shape)}.")
    if gates is not None and gates.numel() != num_rows:
        raise ValueError(f"gates must have {num_rows} elements, one for each row, got shape {tuple(gates.shape)}.")
    if resolve_impl(impl, rows, gates) == "torch":
        return combine_by_token_reference(rows, token, slot, gates, num_tokens)
    by_token, order = token.sort(stable=True)
    starts = torch.searchsorted(by_token, torch.arange(num_tokens + 1, device=token.device))
    refuse_forward_mode("combine", rows, gates, remedy='impl="torch"')
    out = _combine(_matrix(rows), order, starts, gates, slot, num_tokens)
    return out.view(num_tokens, *rows.shape[1:])


def _matrix(rows: Tensor) -> Tensor:
    return rows if rows.ndim == 2 else rows.reshape(rows.shape[0], math.prod(rows.shape[1:]))
