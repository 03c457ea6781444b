"""Starts the expert FFN for few rows, and decides when its kernels are used."""

from typing import NamedTuple

import torch
from torch import Tensor

from moekit_kernels.configs import GemmConfig, gemm_config, is_aligned
from moekit_kernels.grouped_gemm.launches import WeightLoads, epilogue_of, rows_layout, weight_arguments, weight_layout
from moekit_kernels.moe_ffn import kernel_few_rows
from moekit_kernels.runtime import current_target, launch
from moekit_kernels.targets import Target

MOST_ROWS = 512
NARROWEST = 32  # strip of columns
MOST_OFFSETS = 4096  # that a program looks through: as many as there are experts in other kernels


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
    columns, target = down_proj.shape[1], current_target(hidden.device)
    config = strips_of(target, num_rows, down_proj, columns).config
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


class Strips(NamedTuple):
    """How weights are cut into strips of columns.

    Attributes:
        config: The tile; ``block_n`` is the width of a strip.
        narrow: Whether strips are narrower than the table says. They are then loaded through pointers: a program
            takes one or two microseconds to make a descriptor, and there are no others that would read meanwhile.
    """

    config: GemmConfig
    narrow: bool


def strips_of(target: Target, num_rows: int, weight: Tensor, columns: int) -> Strips:
    """Returns the strips of weights ``(E, columns or 2 columns, depth)``: the table's, or narrower ones.

    To read at the rate of the memory takes two programs for each processor. Where the experts that can have rows have
    fewer strips than that, strips are halved, down to 32 columns, and a step is twice as deep, so that it loads as many
    bytes. Only where weights are contiguous along the depth: else rows of a strip would be shorter than a cache line.
    """
    num_experts, weight_columns, depth = weight.shape
    aligned = is_aligned(weight.dtype, weight_columns, depth)
    config = gemm_config("few_rows", target, weight.dtype, num_rows // num_experts, aligned)
    active, widest = min(num_rows, num_experts), config.block_n
    while (
        aligned
        and weight.stride(2) == 1
        and config.block_n > NARROWEST
        and 2 * config.block_k <= depth
        and active * -(-columns // config.block_n) < 2 * target.processors
    ):
        config = config._replace(block_n=config.block_n // 2, block_k=2 * config.block_k)
    return Strips(config, config.block_n < widest)


def num_programs(num_rows: int, num_experts: int) -> int:
    """Returns how many programs a strip of columns has: one for each expert, or for each row where those are fewer."""
    return min(num_rows, num_experts) if num_experts <= MOST_OFFSETS else num_experts


def block_of_experts(num_rows: int, num_experts: int) -> int:
    """Returns ``BLOCK_E`` of the kernels: 0 where a program stands for an expert, else for how many offsets."""
    by_row = num_programs(num_rows, num_experts) < num_experts
    return 1 << (num_experts - 1).bit_length() if by_row else 0


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
    config, narrow = strips_of(target, num_rows, weight, columns)
    loads = WeightLoads.of(weight, target, epilogue)
    if narrow:
        loads = loads._replace(tma=False)
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
        "BLOCK_E": block_of_experts(num_rows, num_experts),
    }
    grid = (-(-columns // config.block_n) if num_rows else 0, num_programs(num_rows, num_experts), parts)
    launch(
        kernel_few_rows.few_rows_fwd_kernel, grid, arguments, num_warps=config.num_warps, num_stages=config.num_stages
    )
