"""Starts the kernel of the grouped GEMM of int8 weights."""

from torch import Tensor

from moekit_kernels.grouped_gemm.launches import rows_layout, weight_layout
from moekit_kernels.grouped_gemm_int8 import kernel
from moekit_kernels.plan.schedule import max_tiles, tile_schedules
from moekit_kernels.precision import float32_precision
from moekit_kernels.runtime import launch

# Chosen by what fits registers and shared memory of every target; not measured.
_FEW_ROWS = 16
_BLOCK_M, _BLOCK_N, _BLOCK_K = 64, 64, 64


def linear(x: Tensor, values: Tensor, scale: Tensor, offsets: Tensor, bias: Tensor | None, transpose: bool) -> Tensor:
    """Computes ``(N, D), (E, F, D) -> (N, F)``, or with ``transpose`` ``(N, F) -> (N, D)``, by one kernel."""
    x, weight = rows_layout(x), weight_layout(values.mT if transpose else values)
    num_rows, (num_experts, columns, depth) = x.shape[0], weight.shape
    offsets = offsets.contiguous()
    block_m = _FEW_ROWS if num_rows <= _FEW_ROWS * num_experts else _BLOCK_M
    # Scales and masks of what goes into the product take registers, which then hold half as many numbers.
    block_k = _BLOCK_K // 2 if transpose or depth % _BLOCK_K or x.itemsize > 2 else _BLOCK_K
    (tiles,) = tile_schedules(offsets, num_rows, (block_m,))
    out = x.new_empty(num_rows, columns)
    arguments = {
        "x_ptr": x,
        "w_ptr": weight,
        "scale_ptr": scale.contiguous(),
        "bias_ptr": None if bias is None else bias.contiguous(),
        "out_ptr": out,
        "offsets_ptr": offsets,
        "tiles_ptr": tiles,
        "num_rows": num_rows,
        "num_columns": columns,
        "K": depth,
        "stride_xm": x.stride(0),
        "stride_we": weight.stride(0),
        "stride_wn": weight.stride(1),
        "stride_wk": weight.stride(2),
        "stride_se": scale.shape[1],
        "stride_om": columns,
        "SCALE_ROWS": transpose,
        "K_MAJOR": weight.stride(2) == 1,
        "EVEN_K": depth % block_k == 0,
        "PRECISION": float32_precision(x.dtype),
        "BLOCK_M": block_m,
        "BLOCK_N": _BLOCK_N,
        "BLOCK_K": block_k,
    }
    most = max_tiles(num_rows, num_experts, block_m, with_unassigned=True)
    grid = (most * -(-columns // _BLOCK_N),)
    launch(kernel.grouped_gemm_int8_kernel, grid, arguments, num_warps=4, num_stages=3)
    return out
