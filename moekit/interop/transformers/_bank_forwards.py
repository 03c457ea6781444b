"""Experts of ``transformers`` that have no ``experts_implementation``, computed by moekit on their own weights.

Letters: T tokens, D width, E experts, K experts per token, N = T * K rows, F hidden width of an expert.
"""

from typing import Any

import torch
from torch import Tensor

from moekit.experts.zero_computation import add_identity
from moekit.layer_parts import experts_on_gated_inputs
from moekit.observers import RoutingEvent, notify, observed
from moekit.plan import DispatchPlan, combine, dispatch, plan_dispatch
from moekit_kernels.grouped_gemm import grouped_gemm
from moekit_kernels.moe_ffn import ExpertWeights, moe_ffn


def split_experts_forward(experts: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """Computes experts of DBRX, whose three matrices ``(E * F, D)`` lie apart, without joining them.

    Args:
        experts: The module of experts.
        hidden_states: ``(..., D)``.
        top_k_index: ``(T, K)``.
        top_k_weights: ``(T, K)``.

    Returns:
        Of the shape of ``hidden_states``.
    """
    glu, num_experts = experts.mlp, experts.num_experts
    _notify(experts, num_experts, top_k_index)
    gate, value, down = (each.view(num_experts, -1, each.shape[-1]) for each in (glu.w1, glu.v1, glu.w2))
    plan = plan_dispatch(top_k_index, num_experts)
    rows_ND = dispatch(hidden_states.reshape(-1, hidden_states.shape[-1]).to(gate.dtype), plan)
    gate_NF = grouped_gemm(rows_ND, gate, plan.offsets)
    hidden_NF = glu.activation_fn(gate_NF) * grouped_gemm(rows_ND, value, plan.offsets)
    y_ND = grouped_gemm(hidden_NF, down.mT, plan.offsets)
    return combine(y_ND, plan, top_k_weights).view(hidden_states.shape).to(hidden_states.dtype)


def input_gated_experts_forward(
    experts: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor
) -> Tensor:
    """Computes experts of Llama 4: only the chosen ones, each on the token times its gate.

    Args:
        experts: The module of experts.
        hidden_states: ``(T, D)``.
        top_k_index: ``(T, K)``.
        top_k_weights: ``(T, K)``.

    Returns:
        ``(T, D)``.
    """
    _notify(experts, experts.num_experts, top_k_index)
    weights = ExpertWeights(experts.gate_up_proj.mT, experts.down_proj.mT)
    plan = plan_dispatch(top_k_index, experts.num_experts)
    x_TD = hidden_states.to(weights.up_proj.dtype)

    def compute(slots: Tensor, plan: DispatchPlan, gates: Tensor) -> Tensor:
        return moe_ffn(slots, gates, plan, weights, _swiglu_of(experts))

    return experts_on_gated_inputs(compute, x_TD, plan, top_k_weights).to(hidden_states.dtype)


def identity_experts_forward(experts: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """Computes experts of LongCat: identity experts are not run, but added as weighted tokens.

    Args:
        experts: The module of experts.
        hidden_states: ``(T, D)``.
        top_k_index: ``(T, K)``; ids from ``num_routed_experts`` on are identity experts.
        top_k_weights: ``(T, K)``.

    Returns:
        ``(T, D)``.
    """
    _notify(experts, experts.total_experts, top_k_index)
    computed = experts.num_routed_experts
    weights = ExpertWeights(experts.gate_up_proj[:computed], experts.down_proj)
    of_identity = top_k_index >= computed
    plan = plan_dispatch(top_k_index, computed, kept=~of_identity)
    x_TD = hidden_states.to(weights.up_proj.dtype)
    output = moe_ffn(x_TD, top_k_weights.masked_fill(of_identity, 0.0), plan, weights, _swiglu_of(experts))
    weight_T = torch.where(of_identity, top_k_weights, 0.0).sum(-1)
    return add_identity(output, x_TD, weight_T, of_identity.any(-1)).to(hidden_states.dtype)


def _swiglu_of(experts: Any) -> str:
    from moekit.interop.transformers._gates import activation_name

    name = activation_name(experts.act_fn, gated=True)
    if name is None:
        raise ValueError(f"act_fn of swapped experts must stay one that moekit computes, got {experts.act_fn!r}.")
    return name


def _notify(experts: Any, num_experts: int, expert_ids: Tensor) -> None:
    if observed():
        notify(RoutingEvent(experts, num_experts, expert_ids=expert_ids))
