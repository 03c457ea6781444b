"""The expert FFN written out: gather the rows, two grouped GEMMs around the activation, weight, add up.

Names end with the letters of their layout: T tokens, N rows, D and D2 widths of input and output, F hidden width.
"""

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor

from moekit_kernels.activations import Activation
from moekit_kernels.activations.activation import activate
from moekit_kernels.grouped_gemm.reference import grouped_gemm_reference
from moekit_kernels.moe_ffn.operands import ExpertWeights
from moekit_kernels.plan.dispatch_plan import DispatchPlan


def moe_ffn_reference(
    x: Float[Tensor, "T D"],
    gates: Float[Tensor, "A B"],
    plan: DispatchPlan,
    weights: ExpertWeights,
    activation: str | Activation | Callable[[Tensor], Tensor],
) -> Float[Tensor, "T D2"]:
    """``out[t] = sum over the rows r of t of gates[slot of r] * down(act(up(x[t])))``.

    Args:
        x: Tokens.
        gates: Weights, whose flat index is the slot.
        plan: The rows of each expert.
        weights: Stacked matrices and biases of the experts.
        activation: An activation, its name, or a function ``(N, F1) -> (N, F)``.

    Returns:
        Shape ``(T, D2)``. Products and sums over slots are taken in the wider dtype of gates and rows.
    """
    up_proj, down_proj, up_bias, down_bias = weights
    x_ND = x[plan.token_of_row]
    hidden_NF = activate(activation, grouped_gemm_reference(x_ND, up_proj, plan.offsets, up_bias))
    y_ND2 = grouped_gemm_reference(hidden_NF, down_proj, plan.offsets, down_bias)
    gates_N = gates.reshape(-1)[plan.slot_of_row]
    weighted_ND2 = gates_N.unsqueeze(-1) * y_ND2
    out_TD2 = weighted_ND2.new_zeros(x.shape[0], y_ND2.shape[1])
    return out_TD2.index_add(0, plan.token_of_row, weighted_ND2).to(y_ND2.dtype)
