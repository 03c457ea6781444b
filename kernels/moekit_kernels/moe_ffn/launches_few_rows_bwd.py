"""Starts the gradients of the expert FFN for few rows.

Names end with the letters of their layout: T tokens, N rows, E experts, D and D2 widths of input and output, F hidden
width, F1 width of the pre-activation, S parts of a depth, P parts of the gates' gradient.
"""

from typing import Any

import torch
from torch import Tensor

from moekit_kernels.arrivals import arrival_counters
from moekit_kernels.combine import launches as combine
from moekit_kernels.combine.token_rows import token_rows
from moekit_kernels.configs import GemmConfig, gemm_config, is_aligned
from moekit_kernels.grouped_gemm.launches import WeightLoads, epilogue_of, rows_layout, weight_arguments, weight_layout
from moekit_kernels.moe_ffn import kernel_few_rows_bwd, launches_few_rows
from moekit_kernels.moe_ffn.operands import ExpertWeights, Gradients
from moekit_kernels.plan.dispatch_plan import RowOrder
from moekit_kernels.runtime import current_target, launch

_TILES = 4  # of a weight's gradient that one program writes
_SLOTS = 64  # of the tokens whose rows one program adds up together
_UNROLLED = 16
_GATE_ROWS = 128  # of one program of the gates' gradient


def backward(
    grad: Tensor,
    x: Tensor,
    gates: Tensor,
    order: RowOrder,
    weights: ExpertWeights,
    pre: Tensor,
    hidden: Tensor,
    activation: str,
    input_grad: bool,
    up_grad: bool,
    down_grad: bool,
) -> Gradients:
    """Returns the gradients of :func:`moekit_kernels.moe_ffn.launches.forward`, for few rows: by two launches.

    One more where pre-activations were not kept, and one for expert choice, where a token has any number of rows.
    """
    num_rows = order.token_of_row.shape[0]
    grad, x = rows_layout(grad.to(x.dtype)), rows_layout(x)
    gates_N = gates.reshape(-1).contiguous()  # flattening alone may leave a stride
    if pre.shape[0] < num_rows:
        pre = launches_few_rows.pre_activations(
            x, weights.up_proj, order.offsets, num_rows, weights.up_bias, order.token_of_row
        )
    kept = hidden if hidden.shape[0] == num_rows else None
    dpre_NF1, weighted_NF, partial_PN = _through_activation(
        grad, weights, rows_layout(pre), kept, gates_N, order, activation, input_grad, down_grad
    )
    return _rest(grad, x, gates, gates_N, order, weights, dpre_NF1, weighted_NF, partial_PN, up_grad)


def _config(weight: Tensor, num_rows: int) -> GemmConfig:
    """Returns the tile of the products by weights ``(E, columns, depth)``."""
    num_experts, columns, depth = weight.shape
    aligned = is_aligned(weight.dtype, columns, depth)
    return gemm_config("few_rows", current_target(weight.device), weight.dtype, num_rows // num_experts, aligned)


def _weight_arguments(weight: Tensor, config: GemmConfig) -> dict[str, Any]:
    """Returns the arguments of a product by one matrix of each expert, without an activation."""
    plain = epilogue_of(None)
    loads = WeightLoads.of(weight, current_target(weight.device), plain)
    return weight_arguments(weight, plain, loads, config)


def _through_activation(
    grad: Tensor,
    weights: ExpertWeights,
    pre: Tensor,
    hidden: Tensor | None,
    gates: Tensor,
    order: RowOrder,
    activation: str,
    input_grad: bool,
    down_grad: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """``dPre (N, F1)``, ``gate * A (N, F)`` for ``W_down``, and for the gates the parts ``(P, N)`` of ``<dA', A>``."""
    weight_EFD2 = weight_layout(weights.down_proj.mT)
    num_experts, columns, _ = weight_EFD2.shape
    config, epilogue = _config(weight_EFD2, pre.shape[0]), epilogue_of(activation)
    num_rows, strips = pre.shape[0], -(-columns // config.block_n)
    dpre_NF1 = pre.new_empty(pre.shape)
    weighted_NF = pre.new_empty(num_rows, columns) if down_grad else None
    partial_PN = torch.empty(strips, num_rows, dtype=torch.float32, device=pre.device) if input_grad else None
    bias = weights.down_bias
    arguments = {
        **_weight_arguments(weight_EFD2, config),
        "ACTIVATION": epilogue.activation,
        "PAIR": epilogue.pair,
        "INTERLEAVED": epilogue.interleaved,
        "dout_ptr": grad,
        "bias_ptr": None if bias is None or not input_grad else bias.contiguous(),
        "pre_ptr": pre,
        "hidden_ptr": hidden,
        "gates_ptr": gates,
        "dpre_ptr": dpre_NF1,
        "weighted_ptr": weighted_NF,
        "partial_ptr": partial_PN,
        "token_ptr": order.token_of_row,
        "slot_ptr": order.slot_of_row,
        "offsets_ptr": order.offsets,
        "num_rows": num_rows,
        "num_columns": columns,
        "stride_dm": grad.stride(0),
        "stride_pm": pre.stride(0),
        "BLOCK_E": launches_few_rows.block_of_experts(num_rows, num_experts),
    }
    launch(
        kernel_few_rows_bwd.few_rows_bwd_act_kernel,
        (strips if num_rows else 0, launches_few_rows.num_programs(num_rows, num_experts)),
        arguments,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
    return dpre_NF1, weighted_NF, partial_PN


def _rest(
    grad: Tensor,
    x: Tensor,
    gates: Tensor,
    gates_N: Tensor,
    order: RowOrder,
    weights: ExpertWeights,
    dpre: Tensor,
    weighted: Tensor | None,
    partial: Tensor | None,
    up_grad: bool,
) -> Gradients:
    """Everything from ``dPre`` on, by one launch: of ``W_down`` for ``weighted``, of inputs for ``partial``."""
    up_proj, down_proj, up_bias, down_bias = weights
    weight_EDF1 = weight_layout(up_proj.mT)
    num_experts, dim, depth = weight_EDF1.shape
    out_dim, hidden = down_proj.shape[1:]
    num_rows, num_tokens = dpre.shape[0], x.shape[0]
    places = max(1, launches_few_rows.num_programs(num_rows, num_experts))
    config = _config(weight_EDF1, num_rows)
    grad_n = 2 * config.block_n
    strips, steps = -(-dim // config.block_n), -(-depth // config.block_k)
    parts = launches_few_rows.depth_parts(config, current_target(x.device), num_rows, weight_EDF1)
    by_slot = order.row_of_slot is not None
    top_k = order.row_of_slot.shape[1] if order.row_of_slot is not None else 1
    parts_SND = grad_x = grad_gates = dw_down = dw_up = db_down = db_up = None
    rows_end = gates_end = 0
    if partial is not None:
        parts_SND = torch.empty(parts, num_rows, dim, dtype=torch.float32, device=x.device)
        rows_end = gates_end = strips * places * parts if num_tokens else 0
        if by_slot:
            grad_x = torch.empty(num_tokens, dim, dtype=x.dtype, device=x.device)
            grad_gates = torch.empty(gates.shape, dtype=gates.dtype, device=gates.device)
            gates_end += -(-num_rows // _GATE_ROWS)
    down_end, columns = gates_end, grad_n * _TILES
    # Contiguous whatever the weights are, as the fake promises the compiler.
    if weighted is not None:
        dw_down = down_proj.new_empty(down_proj.shape)
        db_down = None if down_bias is None else down_bias.new_empty(down_bias.shape)
        down_end += num_experts * -(-out_dim // config.block_n) * -(-hidden // columns)
    up_end = down_end
    if up_grad:
        dw_up = up_proj.new_empty(up_proj.shape)
        db_up = None if up_bias is None else up_bias.new_empty(up_bias.shape)
        up_end += num_experts * -(-depth // config.block_n) * -(-dim // columns)
    product = _weight_arguments(weight_EDF1, config)
    arguments = {
        **{name: product[name] for name in _PRODUCT},
        "dout_ptr": grad,
        "x_ptr": x,
        "dpre_ptr": dpre,
        "weighted_ptr": weighted,
        "parts_ptr": parts_SND,
        "dx_ptr": grad_x,
        "partial_ptr": partial,
        "dgates_ptr": grad_gates,
        "dw_down_ptr": dw_down,
        "db_down_ptr": db_down,
        "dw_up_ptr": dw_up,
        "db_up_ptr": db_up,
        "gates_ptr": gates_N,
        "token_ptr": order.token_of_row,
        "slot_ptr": order.slot_of_row,
        "row_of_slot_ptr": order.row_of_slot.contiguous() if order.row_of_slot is not None else None,
        "offsets_ptr": order.offsets,
        "arrivals_ptr": arrival_counters(x.device, strips) if grad_x is not None else None,
        "num_rows": num_rows,
        "num_tokens": num_tokens,
        "num_places": places,
        "num_parts": 0 if partial is None else partial.shape[0],
        "num_strips": strips,
        "gates_begin": rows_end,
        "down_begin": gates_end,
        "up_begin": down_end,
        "D": dim,
        "D2": out_dim,
        "F": hidden,
        "split_k": -(-steps // parts) * config.block_k,
        "stride_dm": grad.stride(0),
        "stride_xm": x.stride(0),
        "BLOCK_E": launches_few_rows.block_of_experts(num_rows, num_experts),
        "GRAD_N": grad_n,
        "TILES": _TILES,
        "TOP_K": top_k,
        "PARTS": parts,
        "UNROLL": top_k <= _UNROLLED,
        "BLOCK_T": max(1, _SLOTS // (1 << (top_k - 1).bit_length())),
        "BLOCK_P": min(1 << max(0 if partial is None else partial.shape[0] - 1, 0).bit_length(), 16),
        "BLOCK_R": _GATE_ROWS,
    }
    launch(
        kernel_few_rows_bwd.few_rows_bwd_rest_kernel,
        (up_end,),
        arguments,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
    if partial is not None and parts_SND is not None and not by_slot:
        grad_x, grad_gates = combine.input_gradients(
            parts_SND, token_rows(order, num_tokens), order.offsets, num_tokens, x.dtype, partial, gates,
            order.slot_of_row,
        )  # fmt: skip
    return Gradients(grad_x, grad_gates, dw_up, dw_down, db_up, db_down)


# What the product by the up matrices takes of its arguments; the rest is that of an activation.
_PRODUCT = (
    "w_ptr",
    "num_experts",
    "K",
    "stride_we",
    "stride_wn",
    "stride_wk",
    "W_TMA",
    "K_MAJOR",
    "EVEN_K",
    "PRECISION",
    "BLOCK_M",
    "BLOCK_N",
    "BLOCK_K",
)
