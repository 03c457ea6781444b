"""How the grouped GEMM of int8 weights is computed without Triton.

Letters: N rows, E experts, D and F widths of input and output of the weights ``(E, F, D)``.
"""

from itertools import pairwise
from typing import cast

import torch
from torch import Tensor

from moekit_kernels.grouped_gemm.backends import Backend, backend_of
from moekit_kernels.grouped_gemm_int8.quantize import dequantize


def linear(x: Tensor, values: Tensor, scale: Tensor, offsets: Tensor, bias: Tensor | None, transpose: bool) -> Tensor:
    """Computes ``(N, D) -> (N, F)``, or with ``transpose`` ``(N, F) -> (N, D)`` by the transposed weights.

    On CPU, and in float64, a loop over the experts that have rows: one expert at a time is dequantised, into the same
    memory. Elsewhere all are, into memory that is free again when this returns.
    """
    if x.device.type == "cpu" or x.dtype == torch.float64:
        return _loop(x, values, scale, offsets, bias, transpose)
    return by_dequantised(x, values, scale, offsets, bias, transpose, backend_of("torch", x))


def by_dequantised(
    x: Tensor,
    values: Tensor,
    scale: Tensor,
    offsets: Tensor,
    bias: Tensor | None,
    transpose: bool,
    backend: Backend,
) -> Tensor:
    """Computes :func:`linear` by a backend of floating weights."""
    weight = dequantize(values, scale, x.dtype)
    return backend.linear(x, weight.mT if transpose else weight, offsets, bias)


def _loop(x: Tensor, values: Tensor, scale: Tensor, offsets: Tensor, bias: Tensor | None, transpose: bool) -> Tensor:
    bounds = cast(list[int], offsets.tolist())
    out = x.new_empty(x.shape[0], values.shape[2 if transpose else 1])
    matrix = torch.empty_like(values[0], dtype=x.dtype) if values.shape[0] else None
    scales = scale.to(torch.promote_types(x.dtype, torch.float32))
    # The scales of few rows are fewer numbers than the matrix; float16 would overflow before it is scaled.
    late = x.dtype != torch.float16
    for expert, (start, end) in enumerate(pairwise(bounds)):
        if start == end or matrix is None:
            continue
        rows, of_expert = x[start:end], scales[expert]
        if late:
            matrix.copy_(values[expert])
        else:
            torch.mul(values[expert], of_expert.unsqueeze(-1), out=matrix)
        if late and transpose:
            rows = (rows * of_expert).to(x.dtype)
        torch.mm(rows, matrix if transpose else matrix.mT, out=out[start:end])
        if late and not transpose:
            out[start:end] = out[start:end] * of_expert
        if bias is not None:
            out[start:end] += bias[expert]
    out[bounds[-1] :] = 0
    return out
