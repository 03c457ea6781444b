"""The expert FFN on a GPU: which kernels run, in which order, forward and backward."""

import torch
from torch import Tensor

from moekit_kernels.combine import launches as combine
from moekit_kernels.combine.token_rows import token_rows
from moekit_kernels.configs import GemmConfig, gemm_config, is_aligned
from moekit_kernels.grouped_gemm import launches as gemm
from moekit_kernels.grouped_gemm.launches_weight_grads import Operands, bias_grad, weight_grads
from moekit_kernels.moe_ffn import kernel, launches_few_rows, launches_few_rows_bwd
from moekit_kernels.moe_ffn.gathers import Gathers, gathers
from moekit_kernels.moe_ffn.operands import ExpertWeights, Gradients
from moekit_kernels.plan.dispatch_plan import RowOrder
from moekit_kernels.plan.launches_rows import rows_of_tokens
from moekit_kernels.plan.schedule import max_tiles, tiles_of, with_tiles
from moekit_kernels.runtime import current_target, launch

_BIAS_ROWS = 32  # of one program that multiplies them by the bias of their expert

# Triton functions whose strips of 32 columns do not spill beside the sums of a tile of 256.
_FEW_REGISTERS = frozenset({"relu", "silu"})


def forward(
    x: Tensor,
    gates: Tensor,
    order: RowOrder,
    weights: ExpertWeights,
    activation: str,
    keep_pre: bool,
    keep_hidden: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns ``(out (T, D2), pre-activations (N or 0, F1), hidden (N or 0, F))``.

    Three launches for few rows (:func:`launches_few_rows.serves`), for others too, after the schedule of
    tiles where the plan has none: the up product with the activation in its epilogue, the down product, and the
    weighted sum over each token's rows.

    Raises:
        ValueError: If no kernel runs on the device.
    """
    up_proj, down_proj, up_bias, down_bias = weights
    token, offsets = order.token_of_row, order.offsets
    num_rows, num_experts = token.shape[0], up_proj.shape[0]
    if launches_few_rows.serves(num_rows, num_experts):
        hidden_NF, pre_NF1 = launches_few_rows.up(x, up_proj, offsets, num_rows, up_bias, activation, token, keep_pre)
        y_ND2 = launches_few_rows.down(hidden_NF, down_proj, offsets, num_rows, down_bias)
    else:
        up = gemm.forward_config(x, up_proj, num_rows, activation)
        down = gemm.forward_config(x, down_proj, num_rows, None)
        order = with_tiles(order)
        up_tiles, down_tiles = (tiles_of(order, num_rows, config.block_m) for config in (up, down))
        rows, gather = _tokens_for(x, order, _gathers(x, order, weights).up)
        hidden_NF, pre_NF1 = gemm.forward(
            rows, up_proj, offsets, up_tiles, up, num_rows,
            bias=up_bias, activation=activation, gather=gather, keep_pre=keep_pre,
        )  # fmt: skip
        del rows
        y_ND2, _ = gemm.forward(hidden_NF, down_proj, offsets, down_tiles, down, num_rows, bias=down_bias)
    gates_N = gates.reshape(-1).contiguous()  # flattening alone may leave a stride
    out_TD2 = combine.forward(y_ND2, gates_N, token_rows(order, x.shape[0]), offsets, x.shape[0], x.dtype)
    return out_TD2, pre_NF1, hidden_NF if keep_hidden else hidden_NF.new_empty(0, hidden_NF.shape[1])


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
    """Returns the gradients of :func:`forward`: of ``x`` and ``gates`` and of each product's weights, where asked for.

    What was not kept (``pre`` or ``hidden`` of no rows) is computed again. Unassigned rows get no gradient. Rows that
    are gathered into memory are freed as soon as they were read, and for that the gradients of the weights are then
    computed one by one: the gradient of the output serves the first two products, tokens the last.
    """
    up_proj, down_proj, up_bias, down_bias = weights
    token, slot, offsets = order.token_of_row, order.slot_of_row, order.offsets
    num_rows, num_experts = token.shape[0], up_proj.shape[0]
    if launches_few_rows.serves(num_rows, num_experts):
        return launches_few_rows_bwd.backward(
            grad, x, gates, order, weights, pre, hidden, activation, input_grad, up_grad, down_grad
        )
    grad = gemm.rows_layout(grad.to(x.dtype))
    aligned = is_aligned(x.dtype, *down_proj.shape[1:])
    act = gemm_config("activation", current_target(x.device), x.dtype, num_rows // num_experts, aligned)
    plain = gemm.forward_config(x, up_proj, num_rows, None)
    order = with_tiles(order)
    act_tiles, plain_tiles = (tiles_of(order, num_rows, config.block_m) for config in (act, plain))
    gathered = _gathers(x, order, weights, up_grad or down_grad)
    if pre.shape[0] < num_rows:
        rows, gather = _tokens_for(x, order, gathered.up)
        pre, _ = gemm.forward(rows, up_proj, offsets, plain_tiles, plain, num_rows, bias=up_bias, gather=gather)
        del rows
    gates_N = gates.reshape(-1).contiguous()  # flattening alone may leave a stride
    kept = hidden if hidden.shape[0] == num_rows else None
    grad_rows, grad_gather = _tokens_for(grad, order, gathered.grad)
    dpre_NF1, weighted_NF, partial_SN = _through_activation(
        grad_rows,
        down_proj,
        pre,
        kept,
        gates_N,
        order,
        act_tiles,
        act,
        activation,
        gathered.grad,
        input_grad and down_bias is not None,
    )
    grad_x_TD = grad_gates = grad_up = grad_down = grad_up_bias = grad_down_bias = None
    products: list[Operands] = []
    if down_grad:
        products.append(Operands(grad_rows, weighted_NF, dy_gather=grad_gather))
    del pre, grad_rows, weighted_NF
    if gathered.grad or gathered.tokens:
        (grad_down,) = weight_grads(products, offsets, num_rows) if products else (None,)
        products.clear()
    if input_grad:
        if down_bias is not None:
            bias_dot(partial_SN[-1], grad, down_bias, order)
        rows_ND, _ = gemm.forward(dpre_NF1, up_proj.mT, offsets, plain_tiles, plain, num_rows)
        grad_x_TD, grad_gates = combine.input_gradients(
            rows_ND, token_rows(order, x.shape[0]), offsets, x.shape[0], x.dtype, partial_SN, gates, slot
        )
        del rows_ND
    del partial_SN
    if up_grad:
        rows, gather = _tokens_for(x, order, gathered.tokens)
        products.append(Operands(dpre_NF1, rows, x_gather=gather))
    if products:
        computed = weight_grads(products, offsets, num_rows)
        grad_up = computed.pop() if up_grad else None
        grad_down = computed[0] if computed else grad_down
    if up_grad and up_bias is not None:
        grad_up_bias = bias_grad(dpre_NF1, offsets)
    if down_grad and down_bias is not None:
        grad_down_bias = bias_grad(grad, offsets, gather=token, gates=gates_N, slot_of_row=slot)
    return Gradients(grad_x_TD, grad_gates, grad_up, grad_down, grad_up_bias, grad_down_bias)


def _gathers(x: Tensor, order: RowOrder, weights: ExpertWeights, weight_grad: bool = False) -> Gathers:
    """Returns which rows are gathered into memory."""
    _, up_columns, dim = weights.up_proj.shape
    _, out_dim, hidden = weights.down_proj.shape
    return gathers(
        current_target(x.device),
        x.dtype,
        x.shape[0],
        order.token_of_row.shape[0],
        (dim, up_columns, hidden, out_dim),
        read_once=order.row_of_slot is not None,
        weight_grad=weight_grad,
    )


def _tokens_for(x: Tensor, order: RowOrder, gathered: bool) -> tuple[Tensor, Tensor | None]:
    """Returns the rows that a product reads, and which of them each row of the plan is; None for their own order."""
    return (rows_of_tokens(x, order), None) if gathered else (x, order.token_of_row)


def _through_activation(
    grad: Tensor,
    down_proj: Tensor,
    pre: Tensor,
    hidden: Tensor | None,
    gates: Tensor,
    order: RowOrder,
    tiles: Tensor,
    config: GemmConfig,
    activation: str,
    gathered: bool,
    one_more: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """``dPre (N, F1)``, ``gate * A (N, F)`` and the parts ``(S, N)`` of ``<dA', A>``, one for each block of columns.

    With ``one_more`` there is room for another part after them.
    """
    target, epilogue = current_target(pre.device), gemm.epilogue_of(activation)
    weight = gemm.weight_layout(down_proj.mT)
    num_experts, columns, _ = weight.shape
    num_rows = pre.shape[0]
    loads = gemm.WeightLoads.of(weight, target, gemm.epilogue_of(None))  # these weights are not pairs
    x_tma = gathered and gemm.use_descriptor(target, grad)
    strips = -(-columns // config.block_n)
    dpre, weighted = torch.empty_like(pre), pre.new_empty(num_rows, columns)
    partial = torch.empty(strips + one_more, num_rows, dtype=torch.float32, device=pre.device)
    arguments = {
        "dout_ptr": grad,
        **gemm.weight_arguments(weight, epilogue, loads, config),
        "pre_ptr": pre,
        "hidden_ptr": hidden,
        "gates_ptr": gates,
        "dpre_ptr": dpre,
        "weighted_ptr": weighted,
        "partial_ptr": partial,
        "token_ptr": None if gathered else order.token_of_row,
        "slot_ptr": order.slot_of_row,
        "offsets_ptr": order.offsets,
        "tiles_ptr": tiles,
        "num_rows": num_rows,
        "num_columns": columns,
        "stride_dm": grad.stride(0),
        "stride_pm": pre.stride(0),
        "X_TMA": x_tma,
        "GROUP_M": config.group_m,
        "STRIP": _strip(config, epilogue, x_tma, pre.dtype),
    }
    grid = gemm.persistent_grid(target, config, max_tiles(num_rows, num_experts, config.block_m) * strips)
    launch(kernel.moe_ffn_bwd_act_kernel, grid, arguments, num_warps=config.num_warps, num_stages=config.num_stages)
    return dpre, weighted, partial


def _strip(config: GemmConfig, epilogue: gemm.Epilogue, x_tma: bool, dtype: torch.dtype) -> int:
    """Returns how many columns the epilogue of the product through the activation takes at a time.

    A quarter of the tile, but at most 32: strips beside the tile's 128 registers of sums must not spill. Where they
    would, 16: pairs in turn are twice as many numbers, most functions take many registers, and so do rows read by
    pointers. Of pre-activations in 32 bits, 16 are as many bytes as 32 in 16 bits.
    """
    many = epilogue.interleaved or str(epilogue.activation) not in _FEW_REGISTERS or not x_tma
    short = many and (config.block_n > 128 or dtype.itemsize > 2)
    return min(config.block_n // 4, 16 if short else 32)


def bias_dot(part: Tensor, grad: Tensor, down_bias: Tensor, order: RowOrder) -> None:
    """Writes ``part (N,)``: the products of each row's gradient of the output and the bias of its expert."""
    num_rows, num_experts = part.shape[0], down_bias.shape[0]
    arguments = {
        "part_ptr": part,
        "dout_ptr": grad,
        "bias_ptr": down_bias.contiguous(),
        "token_ptr": order.token_of_row,
        "offsets_ptr": order.offsets,
        "num_rows": num_rows,
        "D": grad.shape[1],
        "stride_dm": grad.stride(0),
        "NUM_EXPERTS": num_experts,
        "BLOCK_M": _BIAS_ROWS,
        "BLOCK_D": 64,
        "BLOCK_E": min(1 << (num_experts - 1).bit_length(), 64),
    }
    launch(kernel.moe_ffn_bwd_bias_dot_kernel, (-(-num_rows // _BIAS_ROWS),), arguments)
