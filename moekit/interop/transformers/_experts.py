"""The experts of ``transformers`` computed by moekit: the function behind ``experts_implementation="moekit"``.

Letters: T tokens, D width, E experts, K experts per token, N = T * K rows, F hidden width, F1 columns of the
pre-activation (F, or 2F with a gate).
"""

from typing import Any

import torch
from torch import Tensor, nn

from moekit.interop.transformers._gates import fused_activation
from moekit.observers import RoutingEvent, notify, observed
from moekit.plan import DispatchPlan, combine, dispatch, plan_dispatch
from moekit_kernels.grouped_gemm import grouped_gemm
from moekit_kernels.moe_ffn import ExpertWeights, moe_ffn

_DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


def experts_forward(self: nn.Module, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """Computes the gate-weighted sum of every token's experts, as ``transformers`` calls its implementations.

    Args:
        self: The module of experts.
        hidden_states: ``(T, D)``.
        top_k_index: ``(T, K)``; with expert parallelism of ``transformers``, ids from ``num_experts`` on mark slots of
            other ranks.
        top_k_weights: ``(T, K)``, of any floating dtype; or ``(T, E)``, as some routers of transformers 5.0 give them.

    Returns:
        ``(T, D)``, in the dtype of ``hidden_states``.

    Raises:
        ValueError: If the weights are of a dtype in which nothing can be computed.
    """
    weights = _weights(self)
    dtype = weights.up_proj.dtype
    if dtype not in _DTYPES:
        raise ValueError(
            f'experts_implementation="moekit" takes weights of bfloat16, float16, float32 or float64, got {dtype} in '
            f"{type(self).__name__}: dequantise them, or choose another experts_implementation."
        )
    num_experts = weights.down_proj.shape[0]
    if observed():
        notify(RoutingEvent(self, num_experts, expert_ids=top_k_index))
    # As the implementations of transformers do where a model keeps its residual stream in another dtype.
    x_TD = hidden_states if hidden_states.dtype == dtype else hidden_states.to(dtype)
    if top_k_weights.shape != top_k_index.shape:
        top_k_weights = top_k_weights.gather(-1, top_k_index)
    kept = None
    if getattr(self, "_is_expert_parallel", False):
        kept = top_k_index < num_experts
        top_k_weights = top_k_weights.masked_fill(~kept, 0.0)
    if top_k_weights.dtype != dtype:
        top_k_weights = top_k_weights.to(torch.promote_types(top_k_weights.dtype, dtype))
    plan = plan_dispatch(top_k_index, num_experts, kept=kept)
    activation = fused_activation(self)
    if activation is None:
        output = _unfused(self, x_TD, plan, top_k_weights, weights)
    else:
        output = moe_ffn(x_TD, top_k_weights, plan, weights, activation)
    return output if output.dtype == hidden_states.dtype else output.to(hidden_states.dtype)


def _weights(experts: Any) -> ExpertWeights:
    """Returns the module's parameters, transposed ones as views."""
    name = "gate_up_proj" if getattr(experts, "has_gate", True) else "up_proj"
    up_proj, down_proj = getattr(experts, name), experts.down_proj
    if experts.is_transposed:
        up_proj, down_proj = up_proj.mT, down_proj.mT
    if not experts.has_bias:
        return ExpertWeights(up_proj, down_proj)
    return ExpertWeights(up_proj, down_proj, getattr(experts, f"{name}_bias"), experts.down_proj_bias)


def _unfused(experts: Any, x: Tensor, plan: DispatchPlan, gates: Tensor, weights: ExpertWeights) -> Tensor:
    """Computes with the module's own gate, and its norm of each expert's output if it has one."""
    up_proj, down_proj, up_bias, down_bias = weights
    pre_NF1 = grouped_gemm(dispatch(x, plan), up_proj, plan.offsets, up_bias)
    hidden_NF = experts._apply_gate(pre_NF1) if getattr(experts, "has_gate", True) else experts.act_fn(pre_NF1)
    y_ND = grouped_gemm(hidden_NF.to(down_proj.dtype), down_proj, plan.offsets, down_bias)
    if getattr(experts, "has_post_expert_norm", False):
        y_ND = experts.post_expert_norm(y_ND)
        # Of unassigned rows, which must stay zero, a norm may make anything.
        assigned_N = torch.arange(y_ND.shape[0], device=y_ND.device) < plan.offsets[-1]
        y_ND = y_ND.where(assigned_N.unsqueeze(-1), 0.0)
    return combine(y_ND, plan, gates)
