"""Starts the kernels of the gradients of weights and biases: which tiles, which loads, how many launches.

Names end with the letters of their layout, as in :mod:`moekit_kernels.grouped_gemm.launches`.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from moekit_kernels.configs import GemmConfig, gemm_config, is_aligned
from moekit_kernels.grouped_gemm import kernel_weight_grads
from moekit_kernels.grouped_gemm.launches import persistent_grid, rows_layout, use_descriptor
from moekit_kernels.precision import float32_precision
from moekit_kernels.runtime import current_target, launch


class Operands(NamedTuple):
    """The two operands of the gradient of a weight matrix: ``dw[e] = sum over its rows r: outer(dy[...r], x[...r])``.

    Attributes:
        dy: ``(N, F)``, or of any number of rows where they are gathered.
        x: ``(N, D)``, or of any number of rows where they are gathered.
        dy_gather: ``(N,)``, the row of ``dy`` for each row of the plan; None where ``dy`` has their order.
        x_gather: The same for ``x``.
    """

    dy: Tensor
    x: Tensor
    dy_gather: Tensor | None = None
    x_gather: Tensor | None = None


def weight_grads(products: Sequence[Operands], offsets: Tensor, num_rows: int) -> list[Tensor]:
    """Computes the gradients of one or more stacks of weights that share the rows of a plan.

    Products that gather an operand, or whose operands no descriptor can read, take one launch for every two; each of
    the others takes a launch of its own, in which both operands come through the copy engine.

    Args:
        products: The operands of each.
        offsets: ``(E + 1,)``.
        num_rows: Rows of the plan.

    Returns:
        ``(E, F, D)`` for each: exact zeros for experts without rows. Unassigned rows are not added.
    """
    products = [one._replace(dy=rows_layout(one.dy), x=rows_layout(one.x)) for one in products]
    num_experts = offsets.shape[0] - 1
    grads = [one.x.new_empty(num_experts, one.dy.shape[1], one.x.shape[1]) for one in products]
    gathering: list[int] = []
    for i, one in enumerate(products):
        if _by_descriptors(one):
            _launch_descriptors(one, grads[i], offsets, num_rows)
        else:
            gathering.append(i)
    for i in range(0, len(gathering), 2):
        pair = gathering[i : i + 2]
        _launch_pointers([products[j] for j in pair], [grads[j] for j in pair], offsets, num_rows)
    return grads


def _by_descriptors(operands: Operands) -> bool:
    """Returns whether both operands come through the copy engine: 16-bit rows in the order of the plan.

    The tensor cores read float32 operands along the depth only, which here are the rows: those stay with pointers.
    """
    target = current_target(operands.x.device)
    if operands.dy_gather is not None or operands.x_gather is not None or operands.x.dtype.itemsize != 2:
        return False
    return use_descriptor(target, operands.dy) and use_descriptor(target, operands.x)


def _config(products: Sequence[Operands], num_rows: int, num_experts: int) -> tuple[GemmConfig, int]:
    """Returns the tile, and the stages of the pipeline."""
    x = products[0].x
    aligned = all(is_aligned(x.dtype, one.dy.shape[1], one.x.shape[1]) for one in products)
    config = gemm_config("weight_grad", current_target(x.device), x.dtype, num_rows // num_experts, aligned)
    # A load that waits for an index takes two stages of the pipeline where another takes one.
    gathers = any(one.dy_gather is not None or one.x_gather is not None for one in products)
    return config, config.num_stages if gathers else (config.num_stages + 1) // 2


def _tiles(grad: Tensor, config: GemmConfig) -> int:
    num_experts, height, width = grad.shape
    return num_experts * -(-height // config.block_m) * -(-width // config.block_n)


def _sizes(operands: Operands, grad: Tensor, suffix: str = "") -> dict[str, Any]:
    """Returns the arguments of both kernels that say what is multiplied."""
    _, height, width = grad.shape
    return {
        f"dy{suffix}_ptr": operands.dy,
        f"x{suffix}_ptr": operands.x,
        f"dw{suffix}_ptr": grad,
        f"M{suffix}": height,
        f"N{suffix}": width,
        f"stride_dy{suffix}": operands.dy.stride(0),
        f"stride_x{suffix}": operands.x.stride(0),
        f"stride_de{suffix}": height * width,
        f"stride_dm{suffix}": width,
    }


def _tile_arguments(config: GemmConfig, dtype: torch.dtype) -> dict[str, Any]:
    return {
        "PRECISION": float32_precision(dtype),
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
        "BLOCK_K": config.block_k,
        "GROUP_M": config.group_m,
    }


def _launch_descriptors(operands: Operands, grad: Tensor, offsets: Tensor, num_rows: int) -> None:
    num_experts = grad.shape[0]
    config, num_stages = _config([operands], num_rows, num_experts)
    arguments = {
        **_sizes(operands, grad),
        "offsets_ptr": offsets,
        "num_experts": num_experts,
        **_tile_arguments(config, grad.dtype),
    }
    grid = persistent_grid(current_target(grad.device), config, _tiles(grad, config))
    options = {"num_warps": config.num_warps, "num_stages": num_stages}
    launch(kernel_weight_grads.grouped_gemm_bwd_dw_rows_kernel, grid, arguments, **options)


def _launch_pointers(products: Sequence[Operands], grads: Sequence[Tensor], offsets: Tensor, num_rows: int) -> None:
    num_experts = grads[0].shape[0]
    config, num_stages = _config(products, num_rows, num_experts)
    second = {
        **dict.fromkeys(("dy2_ptr", "x2_ptr", "dw2_ptr", "dy2_gather_ptr", "x2_gather_ptr")),
        **dict.fromkeys(("M2", "N2", "stride_dy2", "stride_x2", "stride_de2", "stride_dm2"), 1),
    }
    arguments: dict[str, Any] = second | {"offsets_ptr": offsets, "num_experts": num_experts}
    for suffix, operands, grad in zip(("", "2"), products, grads, strict=False):
        arguments |= _sizes(operands, grad, suffix)
        arguments |= {f"dy{suffix}_gather_ptr": operands.dy_gather, f"x{suffix}_gather_ptr": operands.x_gather}
    grid = persistent_grid(current_target(grads[0].device), config, sum(_tiles(grad, config) for grad in grads))
    options = {"num_warps": config.num_warps, "num_stages": num_stages}
    launch(
        kernel_weight_grads.grouped_gemm_bwd_dw_kernel,
        grid,
        arguments | _tile_arguments(config, grads[0].dtype),
        **options,
    )


def bias_grad(
    dy: Tensor,
    offsets: Tensor,
    *,
    gather: Tensor | None = None,
    gates: Tensor | None = None,
    slot_of_row: Tensor | None = None,
) -> Tensor:
    """Computes ``db (E, F)``: ``db[e] = sum over the rows r of e: gates[slot_of_row[r]] * dy[gather[r]]``."""
    dy = rows_layout(dy)
    num_experts, width = offsets.shape[0] - 1, dy.shape[1]
    db_EF = dy.new_empty(num_experts, width)
    block_n = 128
    arguments = {
        "dy_ptr": dy,
        "db_ptr": db_EF,
        "gates_ptr": gates,
        "slot_ptr": slot_of_row,
        "gather_ptr": gather,
        "offsets_ptr": offsets,
        "N": width,
        "stride_dy": dy.stride(0),
        "stride_be": width,
        "BLOCK_R": 64,
        "BLOCK_N": block_n,
    }
    launch(kernel_weight_grads.grouped_gemm_bwd_db_kernel, (-(-width // block_n), num_experts), arguments, num_warps=8)
    return db_EF


def linear_weight_grad(grad: Tensor, x: Tensor, offsets: Tensor, with_bias: bool) -> tuple[Tensor, Tensor]:
    """Computes the gradients of weight ``(E, F, D)`` and bias ``(E, F)``, or ``(0, F)``, of a grouped linear layer."""
    offsets = offsets.contiguous()
    db_EF = bias_grad(grad, offsets) if with_bias else grad.new_empty(0, grad.shape[1])
    return weight_grads([Operands(grad, x)], offsets, x.shape[0])[0], db_EF
