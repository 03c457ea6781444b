"""Starts the grouped GEMM kernel: which tiles, which loads, how many programs.

Names end with the letters of their layout: T tokens, N rows of a plan, E experts, D width of the operand, F columns of
the output, F1 columns of the weights (F, or 2F for a gated activation). Arguments of the kernels name sizes as BLAS
does.
"""

import functools
from typing import Any, NamedTuple

from torch import Tensor

from moekit_kernels.activations import TritonActivation, activation_of
from moekit_kernels.configs import GemmConfig, gemm_config, is_aligned
from moekit_kernels.grouped_gemm import kernel
from moekit_kernels.plan.schedule import max_tiles, tile_schedules
from moekit_kernels.precision import float32_precision
from moekit_kernels.runtime import current_target, launch
from moekit_kernels.targets import Target

# Places inside a tile are 32 bits wide; a longer stride would exceed them.
_LONGEST_STRIDE = 2**22


class Epilogue(NamedTuple):
    """What follows the product of a tile, as compile-time arguments.

    Attributes:
        activation: ``"none"``, or the Triton functions of the activation; where they do not take the value, it is
            multiplied by the function of the gate.
        pair: Whether two columns of weights, gate and value, give one column.
        interleaved: Whether a value lies beside its gate, not all values after all gates.
    """

    activation: str | TritonActivation
    pair: bool
    interleaved: bool


@functools.cache
def epilogue_of(activation: str | None) -> Epilogue:
    """Returns the epilogue of a named activation; ``None`` for the bare product.

    Raises:
        ValueError: If the activation is unknown, or has no Triton functions.
    """
    if activation is None:
        return Epilogue("none", False, False)
    act = activation_of(activation)
    if act.triton is None:
        raise ValueError(f"activation must have Triton functions for these kernels, got {act!r}, which has none.")
    return Epilogue(act.triton, act.gated, act.interleaved)


def rows_layout(x: Tensor) -> Tensor:
    """Returns ``x`` with contiguous rows, as kernels read them; a copy only if its own are not."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def weight_layout(weight: Tensor) -> Tensor:
    """Returns ``(E, F1, D)`` with one of the last two dimensions contiguous; a copy only if neither is."""
    one, other = weight.stride()[1:]
    return weight if 1 in (one, other) and max(one, other) < _LONGEST_STRIDE else weight.contiguous()


def use_descriptor(target: Target, tensor: Tensor) -> bool:
    """Returns whether the copy engine can read ``tensor``.

    It needs a start and strides that are multiples of 16 bytes, but for one stride of 1, and no stride of 0.
    """
    if not target.tma or tensor.numel() == 0 or not _strides_fit(tensor.stride(), tensor.itemsize):
        return False
    return tensor.is_meta or tensor.data_ptr() % 16 == 0


@functools.lru_cache(maxsize=1024)
def _strides_fit(strides: tuple[int, ...], itemsize: int) -> bool:
    smallest, *others = sorted(strides)
    return smallest == 1 and 1 in strides[-2:] and all(stride * itemsize % 16 == 0 for stride in others)


class WeightLoads(NamedTuple):
    """How a kernel reads weights ``(E, F1, D)``: compile-time arguments.

    Attributes:
        tma: Whether through tensor descriptors.
        k_major: Whether their last dimension is the contiguous one.
    """

    tma: bool
    k_major: bool

    @staticmethod
    def of(weight: Tensor, target: Target, epilogue: Epilogue) -> "WeightLoads":
        """Returns descriptors where they serve the layout, pointers elsewhere."""
        k_major = weight.stride(2) == 1
        tma = use_descriptor(target, weight)
        if (
            epilogue.pair and not epilogue.interleaved and not k_major
        ):  # the first value's column is where a tile begins
            tma = tma and weight.shape[1] // 2 * weight.itemsize % 16 == 0
        return WeightLoads(tma, k_major)


def persistent_grid(target: Target, config: GemmConfig, tiles: int) -> tuple[int]:
    """Returns a grid of as many programs as run at once, but of no more than there can be tiles.

    With ``per_processor`` 0 there is one for each tile.
    """
    return (min(tiles, target.processors * config.per_processor) if config.per_processor else tiles,)


def weight_arguments(weight: Tensor, epilogue: Epilogue, loads: WeightLoads, config: GemmConfig) -> dict[str, Any]:
    """Returns the arguments of every kernel that multiplies by weights ``(E, F1, D)``: these, their loads, the tile."""
    num_experts, _, depth = weight.shape
    return {
        "w_ptr": weight,
        "num_experts": num_experts,
        "K": depth,
        "stride_we": weight.stride(0),
        "stride_wn": weight.stride(1),
        "stride_wk": weight.stride(2),
        "ACTIVATION": epilogue.activation,
        "PAIR": epilogue.pair,
        "INTERLEAVED": epilogue.interleaved,
        "W_TMA": loads.tma,
        "K_MAJOR": loads.k_major,
        "EVEN_K": depth % config.block_k == 0,
        "PRECISION": float32_precision(weight.dtype),
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
        "BLOCK_K": config.block_k,
    }


def forward_config(x: Tensor, weight: Tensor, num_rows: int, activation: str | None) -> GemmConfig:
    """Returns the configuration of :func:`forward`; its tiles must have the height ``block_m``."""
    kind = "forward" if activation is None else "glu" if epilogue_of(activation).pair else "activation"
    num_experts, *widths = weight.shape
    return gemm_config(kind, current_target(x.device), x.dtype, num_rows // num_experts, is_aligned(x.dtype, *widths))


def forward(
    x: Tensor,
    weight: Tensor,
    offsets: Tensor,
    tiles: Tensor,
    config: GemmConfig,
    num_rows: int,
    *,
    bias: Tensor | None = None,
    activation: str | None = None,
    gather: Tensor | None = None,
    keep_pre: bool = False,
    all_rows: bool = False,
) -> tuple[Tensor, Tensor]:
    """Computes ``out[r] = act(weight[e(r)] x[gather[r]] + bias[e(r)])``.

    Args:
        x: ``(T or N, D)``.
        weight: ``(E, F1, D)``.
        offsets: ``(E + 1,)``.
        tiles: Schedule for ``config.block_m``.
        config: From :func:`forward_config`.
        num_rows: Rows of the plan.
        bias: ``(E, F1)``.
        activation: A name of :data:`~moekit_kernels.activations.ACTIVATIONS`.
        gather: ``(N,)``, row of ``x`` for each row.
        keep_pre: Whether to keep the pre-activations.
        all_rows: Whether unassigned rows are written, zeros; they are left unwritten by default.

    Returns:
        The output ``(N, F)``, and the pre-activations ``(N, F1)``, or ``(0, F1)``.
    """
    target, epilogue = current_target(x.device), epilogue_of(activation)
    x, weight = rows_layout(x), weight_layout(weight)
    num_experts, weight_columns, _ = weight.shape
    columns = weight_columns // 2 if epilogue.pair else weight_columns
    out_NF = x.new_empty(num_rows, columns)
    pre_NF1 = x.new_empty(num_rows if keep_pre else 0, weight_columns)
    loads = WeightLoads.of(weight, target, epilogue)
    most = max_tiles(num_rows, num_experts, config.block_m, with_unassigned=all_rows)
    arguments = {
        **weight_arguments(weight, epilogue, loads, config),
        "x_ptr": x,
        "bias_ptr": None if bias is None else bias.contiguous(),
        "out_ptr": out_NF,
        "pre_ptr": pre_NF1 if keep_pre else None,
        "gather_ptr": gather,
        "offsets_ptr": offsets,
        "tiles_ptr": tiles,
        "num_rows": num_rows,
        "num_inputs": x.shape[0],
        "num_columns": columns,
        "weight_columns": weight_columns,
        "stride_xm": x.stride(0),
        "stride_be": weight_columns,
        "stride_om": columns,
        "stride_pm": weight_columns,
        "X_TMA": gather is None and use_descriptor(target, x),
        "ALL_ROWS": all_rows,
        "GROUP_M": config.group_m,
    }
    grid = persistent_grid(target, config, most * -(-columns // config.block_n))
    launch(kernel.grouped_gemm_fwd_kernel, grid, arguments, num_warps=config.num_warps, num_stages=config.num_stages)
    return out_NF, pre_NF1


def linear(x: Tensor, weight: Tensor, offsets: Tensor, bias: Tensor | None) -> Tensor:
    """Computes ``(N, D), (E, F, D) -> (N, F)`` by one kernel; zeros in unassigned rows."""
    num_rows, offsets = x.shape[0], offsets.contiguous()
    config = forward_config(x, weight, num_rows, None)
    (tiles,) = tile_schedules(offsets, num_rows, (config.block_m,))
    return forward(x, weight, offsets, tiles, config, num_rows, bias=bias, all_rows=True)[0]
