"""The expert FFN as one operation after the other: gather, grouped GEMM, activation, grouped GEMM, combine."""

from collections.abc import Callable

from torch import Tensor

from moekit_kernels.activations import ACTIVATIONS
from moekit_kernels.combine import combine
from moekit_kernels.grouped_gemm import grouped_gemm
from moekit_kernels.impl import Impl
from moekit_kernels.moe_ffn.operands import ExpertWeights
from moekit_kernels.plan.dispatch import dispatch
from moekit_kernels.plan.dispatch_plan import DispatchPlan


def moe_ffn_parts(
    x: Tensor,
    gates: Tensor,
    plan: DispatchPlan,
    weights: ExpertWeights,
    activation: str | Callable[[Tensor], Tensor],
    impl: Impl,
) -> Tensor:
    """Computes :func:`moekit_kernels.moe_ffn.moe_ffn` from separate operations, each by ``impl``."""
    up_proj, down_proj, up_bias, down_bias = weights
    function = activation if callable(activation) else ACTIVATIONS[activation].forward
    hidden = function(grouped_gemm(dispatch(x, plan), up_proj, plan.offsets, up_bias, impl=impl))
    return combine(grouped_gemm(hidden, down_proj, plan.offsets, down_bias, impl=impl), plan, gates, impl=impl)
