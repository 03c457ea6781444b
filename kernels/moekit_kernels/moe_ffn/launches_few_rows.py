"""Starts the expert FFN for few rows, and decides when its kernels are used."""

import torch
from torch import Tensor

from moekit_kernels.configs import GemmConfig, gemm_config, is_aligned
from moekit_kernels.grouped_gemm.launches import WeightLoads, epilogue_of, rows_layout, weight_arguments, weight_layout
from moekit_kernels.moe_ffn import kernel_few_rows
from moekit_kernels.runtime import current_target, launch
from moekit_kernels.targets import Target

MOST_ROWS = 512


def serves(num_rows: int, num_experts: int) -> bool:
    """Returns whether the kernels for few rows are used: at most 512, and at most 64 for each expert.

    Then reading the weights takes longer than multiplying them. The weights of an expert are read once for every 16
    to 64 of its rows, and not at all if it has none. So are gradients: their weights are read once and written once.
    """
    return num_rows <= MOST_ROWS and num_rows <= 64 * num_experts


def up(
    x: Tensor,
    up_proj: Tensor,
    offsets: Tensor,
    num_rows: int,
    bias: Tensor | None,
    activation: str,
    token: Tensor,
    keep_pre: bool,
) -> tuple[Tensor, Tensor]:
    """``(hidden (N, F), pre-activations (N or 0, F1))`` of the tokens ``x``."""
    epilogue = epilogue_of(activation)
    weight_columns = up_proj.shape[1]
    columns = weight_columns // 2 if epilogue.pair else weight_columns
    hidden = x.new_empty(num_rows, columns)
    pre = x.new_empty(num_rows if keep_pre else 0, weight_columns)
    _launch(x, up_proj, offsets, num_rows, bias, activation, token, hidden, pre if keep_pre else None, 1)
    return hidden, pre


def down(hidden: Tensor, down_proj: Tensor, offsets: Tensor, num_rows: int, bias: Tensor | None) -> Tensor:
    """``(N, D2)``, or float32 parts ``(S, N, D2)`` to be added up, where one program an expert and strip is too few."""
    num_experts, columns, depth = down_proj.shape
    target = current_target(hidden.device)
    aligned = is_aligned(hidden.dtype, columns, depth)
    config = gemm_config("few_rows", target, hidden.dtype, num_rows // num_experts, aligned)
    parts = depth_parts(config, target, num_rows, down_proj)
    if parts == 1:
        y = hidden.new_empty(num_rows, columns)
    else:
        y = torch.empty(parts, num_rows, columns, dtype=torch.float32, device=hidden.device)
    _launch(hidden, down_proj, offsets, num_rows, bias, None, None, y, None, parts)
    return y


def pre_activations(
    x: Tensor, up_proj: Tensor, offsets: Tensor, num_rows: int, bias: Tensor | None, token: Tensor
) -> Tensor:
    """``(N, F1)``, which :func:`up` did not keep."""
    pre = x.new_empty(num_rows, up_proj.shape[1])
    _launch(x, up_proj, offsets, num_rows, bias, None, token, pre, None, 1)
    return pre


def depth_parts(config: GemmConfig, target: Target, num_rows: int, weight: Tensor) -> int:
    """Returns into how many parts the depth of a product by weights ``(E, columns, depth)`` is split, at most 8.

    So many that there are programs enough for every processor, but no part of fewer than four steps.
    """
    num_experts, columns, depth = weight.shape
    programs = max(1, min(num_rows, num_experts)) * -(-columns // config.block_n)
    enough = 2 * target.processors * config.per_processor // programs
    return max(1, min(enough, 8, depth // (4 * config.block_k)))


def _launch(
    x: Tensor,
    weight: Tensor,
    offsets: Tensor,
    num_rows: int,
    bias: Tensor | None,
    activation: str | None,
    gather: Tensor | None,
    out: Tensor,
    pre: Tensor | None,
    parts: int,
) -> None:
    target, epilogue = current_target(x.device), epilogue_of(activation)
    x, weight = rows_layout(x), weight_layout(weight)
    num_experts, weight_columns, depth = weight.shape
    columns = weight_columns // 2 if epilogue.pair else weight_columns
    aligned = is_aligned(x.dtype, weight_columns, depth)
    config = gemm_config("few_rows", target, x.dtype, num_rows // num_experts, aligned)
    # Gates and values in turn are one strip of columns.
    loads = WeightLoads.of(weight, target, epilogue)
    steps = -(-depth // config.block_k)
    arguments = {
        **weight_arguments(weight, epilogue, loads, config),
        "x_ptr": x,
        "bias_ptr": None if bias is None else bias.contiguous(),
        "out_ptr": out,
        "pre_ptr": pre,
        "gather_ptr": gather,
        "offsets_ptr": offsets,
        "num_rows": num_rows,
        "num_columns": columns,
        "weight_columns": weight_columns,
        "stride_xm": x.stride(0),
        "stride_be": weight_columns,
        "split_k": -(-steps // parts) * config.block_k,
    }
    grid = (-(-columns // config.block_n) if num_rows else 0, num_experts, parts)
    launch(
        kernel_few_rows.few_rows_fwd_kernel, grid, arguments, num_warps=config.num_warps, num_stages=config.num_stages
    )
