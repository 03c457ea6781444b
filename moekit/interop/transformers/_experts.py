"""The experts of ``transformers`` computed by moekit: the function behind ``experts_implementation="moekit"``.

Letters: T tokens, D width, E experts, K experts per token, N = T * K rows, F hidden width, F1 columns of the
pre-activation (F, or 2F with a gate).
"""

from typing import Any, cast

import torch
from torch import Tensor, nn

from moekit.experts.activation import ActivationLike
from moekit.experts.products import DenseProduct, Products, ffn_by_products
from moekit.interop.transformers._gates import fused_activation
from moekit.observers import RoutingEvent, notify, observed
from moekit.plan import DispatchPlan, combine, dispatch, plan_dispatch
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
    weights = stacked_weights(self)
    dtype = weights.up_proj.dtype
    if dtype not in _DTYPES:
        raise ValueError(
            f'experts_implementation="moekit" takes weights of bfloat16, float16, float32 or float64, got {dtype} in '
            f"{type(self).__name__}: dequantise them, or choose another experts_implementation."
        )
    x_TD, plan, gates = _planned(self, hidden_states, top_k_index, top_k_weights, weights.down_proj.shape[0], dtype)
    activation = fused_activation(self)
    if activation is None:
        output = _unfused(self, x_TD, plan, gates, dense_products(weights))
    else:
        output = moe_ffn(x_TD, gates, plan, weights, activation)
    return output if output.dtype == hidden_states.dtype else output.to(hidden_states.dtype)


def experts_forward_by(
    experts: nn.Module,
    inputs: tuple[Tensor, Tensor, Tensor],
    products: Products,
    *,
    num_experts: int,
    dtype: torch.dtype,
) -> Tensor:
    """Computes :func:`experts_forward` unfused, by other products than those of the module's own weights.

    Args:
        experts: The module of experts.
        inputs: The arguments of :func:`experts_forward`.
        products: What computes.
        num_experts: ``E``.
        dtype: Of the rows.
    """
    x_TD, plan, gates = _planned(experts, *inputs, num_experts, dtype)
    activation = fused_activation(experts)
    if activation is None:
        return _unfused(experts, x_TD, plan, gates, products).to(inputs[0].dtype)
    return ffn_by_products(x_TD, gates, plan, products, cast(ActivationLike, activation), "auto").to(inputs[0].dtype)


def dense_products(weights: ExpertWeights) -> Products:
    """Returns the products by stacked weights."""
    up_proj, down_proj, up_bias, down_bias = weights
    return Products(DenseProduct(up_proj, up_bias), DenseProduct(down_proj, down_bias))


def _planned(
    experts: nn.Module, x: Tensor, ids: Tensor, gates: Tensor, num_experts: int, dtype: torch.dtype
) -> tuple[Tensor, DispatchPlan, Tensor]:
    """Returns tokens ``(T, D)`` of ``dtype``, the plan of the chosen slots and their gates ``(T, K)``."""
    if observed():
        notify(RoutingEvent(experts, num_experts, expert_ids=ids))
    # As the implementations of transformers do where a model keeps its residual stream in another dtype.
    x_TD = x if x.dtype == dtype else x.to(dtype)
    if gates.shape != ids.shape:
        gates = gates.gather(-1, ids)
    kept = None
    if getattr(experts, "_is_expert_parallel", False):
        kept = ids < num_experts
        gates = gates.masked_fill(~kept, 0.0)
    if gates.dtype != dtype:
        gates = gates.to(torch.promote_types(gates.dtype, dtype))
    return x_TD, plan_dispatch(ids, num_experts, kept=kept), gates


def stacked_weights(experts: Any) -> ExpertWeights:
    """Returns the module's parameters, transposed ones as views."""
    name = "gate_up_proj" if getattr(experts, "has_gate", True) else "up_proj"
    up_proj, down_proj = getattr(experts, name), experts.down_proj
    if experts.is_transposed:
        up_proj, down_proj = up_proj.mT, down_proj.mT
    if not experts.has_bias:
        return ExpertWeights(up_proj, down_proj)
    return ExpertWeights(up_proj, down_proj, getattr(experts, f"{name}_bias"), experts.down_proj_bias)


def _unfused(experts: Any, x: Tensor, plan: DispatchPlan, gates: Tensor, products: Products) -> Tensor:
    """Computes with the module's own gate, and its norm of each expert's output if it has one."""
    pre_NF1 = products.up(dispatch(x, plan), plan.offsets, "auto")
    hidden_NF = experts._apply_gate(pre_NF1) if getattr(experts, "has_gate", True) else experts.act_fn(pre_NF1)
    y_ND = products.down(hidden_NF.to(x.dtype), plan.offsets, "auto")
    if getattr(experts, "has_post_expert_norm", False):
        y_ND = experts.post_expert_norm(y_ND)
        # Of unassigned rows, which must stay zero, a norm may make anything.
        assigned_N = torch.arange(y_ND.shape[0], device=y_ND.device) < plan.offsets[-1]
        y_ND = y_ND.where(assigned_N.unsqueeze(-1), 0.0)
    return combine(y_ND, plan, gates)
