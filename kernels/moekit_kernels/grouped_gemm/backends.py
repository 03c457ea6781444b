"""How the grouped GEMM and its weight gradient are computed: a loop over experts, ``F.grouped_mm``, Triton kernels.

The loop reads ``offsets`` on the host, which costs nothing on CPU and a synchronisation on a GPU. ``F.grouped_mm``
reads them on the device, needs rows of a multiple of 16 bytes (so operands are padded where they are not) and supports
float32, float16 and bfloat16 only.
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
    """The backend of a resolved ``impl`` for rows like ``x``: other than by Triton, a loop on CPU and in float64."""
    if impl == "triton":
        from moekit_kernels.grouped_gemm import launches

        return Backend(launches.linear, launches.linear_weight_grad)
    if x.device.type != "cpu" and x.dtype in _GROUPED_MM_DTYPES:
        return Backend(grouped_mm_linear, grouped_mm_weight_grad)
    return Backend(loop_linear, loop_weight_grad)


def loop_linear(x: Tensor, weight: Tensor, offsets: Tensor, bias: Tensor | None) -> Tensor:
    """``(N, D), (E, F, D) -> (N, F)``, one GEMM per expert that has rows."""
    bounds = cast(list[int], offsets.tolist())
    out = x.new_empty(x.shape[0], weight.shape[1])
    for expert, (start, end) in enumerate(pairwise(bounds)):
        if start == end:
            continue
        if bias is None:
            torch.mm(x[start:end], weight[expert].mT, out=out[start:end])
        else:
            torch.addmm(bias[expert], x[start:end], weight[expert].mT, out=out[start:end])
    out[bounds[-1] :] = 0
    return out


def loop_weight_grad(grad: Tensor, x: Tensor, offsets: Tensor, with_bias: bool) -> tuple[Tensor, Tensor]:
    """``(N, F), (N, D) -> (E, F, D), (E, F)``, one GEMM per expert that has rows."""
    bounds = cast(list[int], offsets.tolist())
    num_experts = len(bounds) - 1
    grad_weight = x.new_empty(num_experts, grad.shape[1], x.shape[1])
    grad_bias = x.new_empty(num_experts if with_bias else 0, grad.shape[1])
    for expert, (start, end) in enumerate(pairwise(bounds)):
        if start == end:
            grad_weight[expert] = 0
        else:
            torch.mm(grad[start:end].mT, x[start:end], out=grad_weight[expert])
        if with_bias:
            grad_bias[expert] = grad[start:end].sum(0)
    return grad_weight, grad_bias


def grouped_mm_linear(x: Tensor, weight: Tensor, offsets: Tensor, bias: Tensor | None) -> Tensor:
    """The same as :func:`loop_linear` through ``F.grouped_mm``, without reading ``offsets`` on the host."""
    features = weight.shape[1]
    x, weight = _aligned(x, -1), _aligned(_aligned(weight, -1), -2)
    out = F.grouped_mm(x, weight.mT, offs=offsets[1:].int())[:, :features]
    row = torch.arange(x.shape[0], device=x.device)
    if bias is not None:
        expert = torch.searchsorted(offsets[1:].contiguous(), row, right=True).clamp_(max=bias.shape[0] - 1)
        out = out + bias[expert]
    return torch.where((row < offsets[-1]).unsqueeze(-1), out, 0).contiguous()


def grouped_mm_weight_grad(grad: Tensor, x: Tensor, offsets: Tensor, with_bias: bool) -> tuple[Tensor, Tensor]:
    """The same as :func:`loop_weight_grad` through ``F.grouped_mm`` and ``segment_reduce``."""
    features, dim = grad.shape[1], x.shape[1]
    live = (torch.arange(x.shape[0], device=x.device) < offsets[-1]).unsqueeze(-1)
    grad, x = torch.where(live, grad, 0), torch.where(live, x, 0)
    product = F.grouped_mm(_aligned(grad, -1).mT, _aligned(x, -1), offs=offsets[1:].int())[:, :features, :dim]
    has_rows = (offsets.diff() > 0)[:, None, None]
    grad_weight = torch.where(has_rows, product, 0).contiguous()
    if not with_bias:
        return grad_weight, grad.new_empty(0, features)
    grad_bias = torch.segment_reduce(grad.float(), "sum", offsets=offsets, axis=0, unsafe=True, initial=0.0)
    return grad_weight, grad_bias.to(grad.dtype)


def _aligned(x: Tensor, dim: int) -> Tensor:
    """Pads ``dim`` with zeros until a row takes a multiple of 16 bytes; makes it contiguous."""
    short = -x.shape[dim] % (16 // x.element_size())
    if short:
        x = F.pad(x, (0, short) if dim == -1 else (0, 0, 0, short))
    return x.contiguous()
