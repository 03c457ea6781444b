"""How the grouped GEMM and its weight gradient are computed: a loop over experts, ``F.grouped_mm``, Triton kernels.

The loop reads ``offsets`` on the host, which costs nothing on CPU and a synchronisation on a GPU. ``F.grouped_mm``
reads them on the device, needs rows of a multiple of 16 bytes (so operands are padded where they are not) and supports
float32, float16 and bfloat16 only.

Names end with the letters of their layout: N rows, E experts, D and F widths of input and output; a 1 is a column.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor

_GROUPED_MM_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


class Backend(NamedTuple):
    """One way to compute.

    Attributes:
        linear: ``(x (N, D), weight (E, F, D), offsets, bias (E, F) or None) -> (N, F)``.
        weight_grad: ``(grad (N, F), x (N, D), offsets, with_bias) -> (E, F, D), (E, F)``: the gradients of weight and
            bias, exact zeros without rows; the second is empty ``(0, F)`` without ``with_bias``.
    """

    linear: Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
    weight_grad: Callable[[Tensor, Tensor, Tensor, bool], tuple[Tensor, Tensor]]


def backend_of(impl: str, x: Tensor) -> Backend:
    """Returns the backend of a resolved ``impl`` for rows like ``x``: without Triton, a loop on CPU and in float64."""
    if impl == "triton":
        from moekit_kernels.grouped_gemm import launches, launches_weight_grads

        return Backend(launches.linear, launches_weight_grads.linear_weight_grad)
    if x.device.type != "cpu" and x.dtype in _GROUPED_MM_DTYPES:
        return Backend(grouped_mm_linear, grouped_mm_weight_grad)
    return Backend(loop_linear, loop_weight_grad)


def loop_linear(x: Tensor, weight: Tensor, offsets: Tensor, bias: Tensor | None) -> Tensor:
    """Computes ``(N, D), (E, F, D) -> (N, F)`` by one GEMM per expert that has rows."""
    bounds = cast(list[int], offsets.tolist())
    out_NF = x.new_empty(x.shape[0], weight.shape[1])
    for expert, (start, end) in enumerate(pairwise(bounds)):
        if start == end:
            continue
        if bias is None:
            torch.mm(x[start:end], weight[expert].mT, out=out_NF[start:end])
        else:
            torch.addmm(bias[expert], x[start:end], weight[expert].mT, out=out_NF[start:end])
    out_NF[bounds[-1] :] = 0
    return out_NF


def loop_weight_grad(grad: Tensor, x: Tensor, offsets: Tensor, with_bias: bool) -> tuple[Tensor, Tensor]:
    """Computes ``(N, F), (N, D) -> (E, F, D), (E, F)`` by one GEMM per expert that has rows."""
    bounds = cast(list[int], offsets.tolist())
    num_experts = len(bounds) - 1
    grad_weight_EFD = x.new_empty(num_experts, grad.shape[1], x.shape[1])
    grad_bias_EF = x.new_empty(num_experts if with_bias else 0, grad.shape[1])
    for expert, (start, end) in enumerate(pairwise(bounds)):
        if start == end:
            grad_weight_EFD[expert] = 0
        else:
            torch.mm(grad[start:end].mT, x[start:end], out=grad_weight_EFD[expert])
        if with_bias:
            grad_bias_EF[expert] = grad[start:end].sum(0)
    return grad_weight_EFD, grad_bias_EF


def grouped_mm_linear(x: Tensor, weight: Tensor, offsets: Tensor, bias: Tensor | None) -> Tensor:
    """Computes :func:`loop_linear` through ``F.grouped_mm``, without reading ``offsets`` on the host."""
    features = weight.shape[1]
    x_ND, weight_EFD = _aligned(x, -1), _aligned(_aligned(weight, -1), -2)
    out_NF = F.grouped_mm(x_ND, weight_EFD.mT, offs=offsets[1:].int())[:, :features]
    row_N = torch.arange(x.shape[0], device=x.device)
    if bias is not None:
        expert_of_row = torch.searchsorted(offsets[1:].contiguous(), row_N, right=True).clamp_(max=bias.shape[0] - 1)
        out_NF = out_NF + bias[expert_of_row]
    return torch.where((row_N < offsets[-1]).unsqueeze(-1), out_NF, 0).contiguous()


def grouped_mm_weight_grad(grad: Tensor, x: Tensor, offsets: Tensor, with_bias: bool) -> tuple[Tensor, Tensor]:
    """Computes :func:`loop_weight_grad` through ``F.grouped_mm`` and ``segment_reduce``."""
    features, dim = grad.shape[1], x.shape[1]
    assigned_N1 = (torch.arange(x.shape[0], device=x.device) < offsets[-1]).unsqueeze(-1)
    grad_NF, x_ND = torch.where(assigned_N1, grad, 0), torch.where(assigned_N1, x, 0)
    product_EFD = F.grouped_mm(_aligned(grad_NF, -1).mT, _aligned(x_ND, -1), offs=offsets[1:].int())
    has_rows_E11 = (offsets.diff() > 0)[:, None, None]
    grad_weight_EFD = torch.where(has_rows_E11, product_EFD[:, :features, :dim], 0).contiguous()
    if not with_bias:
        return grad_weight_EFD, grad.new_empty(0, features)
    grad_bias_EF = torch.segment_reduce(grad_NF.float(), "sum", offsets=offsets, axis=0, unsafe=True, initial=0.0)
    return grad_weight_EFD, grad_bias_EF.to(grad.dtype)


def _aligned(x: Tensor, dim: int) -> Tensor:
    """Pads ``dim`` with zeros until a row takes a multiple of 16 bytes; makes it contiguous."""
    short = -x.shape[dim] % (16 // x.element_size())
    if short:
        x = F.pad(x, (0, short) if dim == -1 else (0, 0, 0, short))
    return x.contiguous()
