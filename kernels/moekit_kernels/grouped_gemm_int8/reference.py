"""The grouped GEMM of int8 weights written out: dequantise, then multiply."""

from jaxtyping import Float, Int, Int8
from torch import Tensor

from moekit_kernels.autocast import autocast
from moekit_kernels.grouped_gemm.reference import grouped_gemm_reference
from moekit_kernels.grouped_gemm_int8.quantize import dequantize


def grouped_gemm_int8_reference(
    x: Float[Tensor, "N D"],
    values: Int8[Tensor, "E F D"],
    scale: Float[Tensor, "E F"],
    offsets: Int[Tensor, "E+1"],
    bias: Float[Tensor, "E F"] | None = None,
) -> Float[Tensor, "N F"]:
    """Computes ``y[r] = scale[e] * (values[e] @ x[r]) + bias[e]`` for the rows ``offsets[e] <= r < offsets[e + 1]``.

    Weights are rounded to the dtype of ``x`` before the product. All of them are made at once: for tests, and to read.

    Args:
        x: Rows, sorted by expert.
        values: Integers, one matrix per expert.
        scale: One factor for each output.
        offsets: Non-decreasing, ``offsets[0] == 0``, ``offsets[E] <= N``.
        bias: One vector per expert.

    Returns:
        Shape ``(N, F)``, dtype of ``x``; under ``torch.autocast`` the autocast dtype.
    """
    x = autocast(x)
    bias = None if bias is None else bias.to(x.dtype)
    return grouped_gemm_reference(x, dequantize(values, scale, x.dtype), offsets, bias)
