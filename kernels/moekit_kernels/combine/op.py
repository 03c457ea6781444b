"""``moekit::combine`` and ``moekit::combine_backward``: schema, fake, autograd, choice of implementation."""

import math
from typing import Any, NoReturn

from jaxtyping import Float
from torch import Tensor

from moekit_kernels.combine import launches
from moekit_kernels.combine.reference import combine_reference
from moekit_kernels.combine.token_rows import TokenRows, token_rows
from moekit_kernels.eager import operation
from moekit_kernels.forward_mode import refuse_forward_mode
from moekit_kernels.impl import Impl, Limits, resolve_impl
from moekit_kernels.plan.checks import check_gates
from moekit_kernels.plan.dispatch_plan import DispatchPlan

LIMITS = Limits()


@operation("moekit::combine")
def _combine(
    rows: Tensor,
    gates: Tensor,
    row_of_place: Tensor,
    starts: Tensor | None,
    slot_of_row: Tensor | None,
    num_tokens: int,
) -> Tensor:
    return launches.forward(rows, gates, TokenRows(row_of_place, starts, slot_of_row), None, num_tokens)


@operation("moekit::combine_backward")
def _combine_backward(
    grad: Tensor,
    rows: Tensor,
    gates: Tensor,
    row_of_place: Tensor,
    starts: Tensor | None,
    slot_of_row: Tensor | None,
    rows_grad: bool,
    gates_grad: bool,
) -> list[Tensor]:
    order = TokenRows(row_of_place, starts, slot_of_row)
    gradients = launches.backward(grad, rows, gates, order, rows_grad, gates_grad)
    return [gradient for gradient in gradients if gradient is not None]


@_combine.register_fake
def _(
    rows: Tensor,
    gates: Tensor,
    row_of_place: Tensor,
    starts: Tensor | None,
    slot_of_row: Tensor | None,
    num_tokens: int,
) -> Tensor:
    return rows.new_empty(num_tokens, rows.shape[1])


@_combine_backward.register_fake
def _(
    grad: Tensor,
    rows: Tensor,
    gates: Tensor,
    row_of_place: Tensor,
    starts: Tensor | None,
    slot_of_row: Tensor | None,
    rows_grad: bool,
    gates_grad: bool,
) -> list[Tensor]:
    return [t.new_empty(t.shape) for t, requested in ((rows, rows_grad), (gates, gates_grad)) if requested]


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:5])


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    needs_rows, needs_gates = ctx.needs_input_grad[:2]
    refuse_forward_mode("combine", grad, remedy='impl="torch"')
    gradients = _combine_backward(grad, *ctx.saved_tensors, needs_rows, needs_gates)
    return gradients[0] if needs_rows else None, gradients[-1] if needs_gates else None, *(None,) * 4


def _no_second_order(ctx: Any, *grads: Any) -> NoReturn:
    raise RuntimeError('combine has first-order gradients only; for higher orders use impl="torch".')


def _save_nothing(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None: ...


_combine.register_autograd(_backward, setup_context=_save)
_combine_backward.register_autograd(_no_second_order, setup_context=_save_nothing)


def combine(
    rows: Float[Tensor, "N *D"], plan: DispatchPlan, gates: Float[Tensor, "A B"], *, impl: Impl | None = None
) -> Float[Tensor, "T *D"]:
    """Adds up the rows of each token: ``out[t] = sum over the slots s of t of gates[s] * rows[row of s]``.

    Deterministic: a gather and a sum over ``K`` in the order of the slots. For expert choice, where a token has any
    number of rows, these are added up in their order, which the kernel gets from a stable sort by token, without
    reading anything on the host.

    Args:
        rows: Outputs of the experts, of any trailing shape; zero where a row is unassigned.
        plan: The plan that dispatched.
        gates: Weights, whose flat index is the slot.
        impl: ``"reference"`` and ``"torch"``: :func:`combine_reference`, products and sums in the wider dtype of rows
            and gates, gradients of every order. ``"triton"``: one kernel each way, products and sums in float32,
            first-order gradients. That of the plan by default. See :mod:`moekit_kernels.impl`.

    Returns:
        One output per token, in the dtype of ``rows``; zero for a token without slots.

    Raises:
        ValueError: If ``rows`` or ``gates`` does not fit the plan, or ``impl`` is unknown or cannot run here.

    Example:
        >>> plan = plan_dispatch(torch.tensor([[0, 1]]), num_experts=2)
        >>> combine(torch.tensor([[1.0], [10.0]]), plan, torch.tensor([[0.25, 0.75]])).item()
        7.75
    """
    if rows.shape[0] != plan.slot_of_row.shape[0]:
        raise ValueError(f"rows must be the plan's {plan.slot_of_row.shape[0]} rows, got shape {tuple(rows.shape)}.")
    check_gates(gates, plan)
    operands = (("rows", rows.dtype), ("gates", gates.dtype))
    if resolve_impl(plan.impl if impl is None else impl, LIMITS, rows.device, *operands) == "reference":
        return combine_reference(rows, plan, gates)
    refuse_forward_mode("combine", rows, gates, remedy='impl="torch"')
    rows_ND = rows if rows.ndim == 2 else rows.reshape(rows.shape[0], math.prod(rows.shape[1:]))
    out_TD = _combine(rows_ND, gates, *token_rows(plan.order, plan.num_tokens), plan.num_tokens)
    return out_TD.view(plan.num_tokens, *rows.shape[1:])
