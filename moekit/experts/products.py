"""The two products of feed-forward experts as parts, so that each may be computed another way.

Experts whose weights are adapted or quantised run by these, one operation after the other; plain ones run fused.

Letters: T tokens, N rows of a plan, E experts, D and D2 widths of input and output, F hidden width, F1 columns of the
pre-activation (F, or 2F for a gated activation).
"""

from typing import NamedTuple, Protocol

from torch import Tensor

from moekit.experts.activation import ActivationLike, why_not_fused
from moekit.plan import DispatchPlan, check_gates, combine, dispatch
from moekit_kernels.activations.activation import activate
from moekit_kernels.autocast import autocast
from moekit_kernels.grouped_gemm import grouped_gemm
from moekit_kernels.impl import Impl, resolve_impl
from moekit_kernels.moe_ffn.op import LIMITS


class RowProduct(Protocol):
    """One linear layer of every expert."""

    def __call__(self, rows: Tensor, offsets: Tensor, impl: Impl) -> Tensor:
        """Returns ``weight[e(r)] @ rows[r] + bias[e(r)]`` of rows that are sorted by expert; zero if unassigned."""
        ...


class Products(NamedTuple):
    """Both layers of a bank of experts.

    Attributes:
        up: ``(N, D) -> (N, F1)``.
        down: ``(N, F) -> (N, D2)``.
    """

    up: RowProduct
    down: RowProduct


class DenseProduct(NamedTuple):
    """A product by stacked matrices.

    Attributes:
        weight: ``(E, out, in)``.
        bias: ``(E, out)``.
    """

    weight: Tensor
    bias: Tensor | None

    def __call__(self, rows: Tensor, offsets: Tensor, impl: Impl) -> Tensor:
        """See :class:`RowProduct`."""
        return grouped_gemm(rows, self.weight, offsets, self.bias, impl=impl)


def ffn_by_products(
    x: Tensor, gates: Tensor, plan: DispatchPlan, products: Products, activation: ActivationLike, impl: Impl
) -> Tensor:
    """Computes the gate-weighted sum of every token's experts, unfused.

    Args:
        x: Tokens ``(T, D)``.
        gates: Weights, whose flat index is the slot.
        plan: Which rows belong to which expert.
        products: Both layers.
        activation: See :class:`~moekit.experts.ffn.FFNExperts`.
        impl: Of products and combine; ``"auto"`` is that of the plan.

    Returns:
        ``(T, D2)``; zero for a token without an expert.

    Raises:
        ValueError: If tokens, gates and plan do not fit each other.
    """
    check_gates(gates, plan)
    impl = plan.impl if impl == "auto" else impl
    rows_ND = dispatch(autocast(x), plan)
    hidden_NF = activate(activation, products.up(rows_ND, plan.offsets, impl))
    y_ND2 = products.down(hidden_NF, plan.offsets, impl)
    if not _adds_by_rows(y_ND2, activation, impl):
        return combine(y_ND2, plan, gates, impl=impl)
    weighted_ND2 = gates.reshape(-1)[plan.slot_of_row].unsqueeze(-1) * y_ND2
    out_TD2 = weighted_ND2.new_zeros(plan.num_tokens, y_ND2.shape[1])
    return out_TD2.index_add(0, plan.token_of_row, weighted_ND2).to(y_ND2.dtype)


def _adds_by_rows(rows: Tensor, activation: ActivationLike, impl: Impl) -> bool:
    """Returns whether plain experts would add up a token's rows in their order, not in that of its slots.

    Then these do so too: another order rounds otherwise.
    """
    resolved = resolve_impl(impl, LIMITS, rows.device, ("rows", rows.dtype))
    in_loop = resolved == "torch" and rows.device.type == "cpu" and why_not_fused(activation, triton=False) is None
    return in_loop or resolved == "reference"
