"""The expert FFN as one operation after the other: gather, grouped GEMM, activation, grouped GEMM, combine."""

from collections.abc import Callable

from torch import Tensor

from moekit_kernels.activations import Activation
from moekit_kernels.activations.activation import activate
from moekit_kernels.combine import combine
from moekit_kernels.grouped_gemm import grouped_gemm
from moekit_kernels.impl import Impl
from moekit_kernels.moe_ffn.operands import ExpertWeights
from moekit_kernels.plan.dispatch_plan import DispatchPlan
from moekit_kernels.plan.token_rows import dispatch


def moe_ffn_parts(
    x: Tensor,
    gates: Tensor,
    plan: DispatchPlan,
    weights: ExpertWeights,
    activation: str | Activation | Callable[[Tensor], Tensor],
    impl: Impl,
) -> Tensor:
    """Computes :func:`moekit_kernels.moe_ffn.moe_ffn` from separate operations, each by ``impl``."""
    up_proj, down_proj, up_bias, down_bias = weights
    x_ND = dispatch(x, plan)
    hidden_NF = activate(activation, grouped_gemm(x_ND, up_proj, plan.offsets, up_bias, impl=impl))
    y_ND2 = grouped_gemm(hidden_NF, down_proj, plan.offsets, down_bias, impl=impl)
    return combine(y_ND2, plan, gates, impl=impl)
