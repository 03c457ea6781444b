"""How the grouped GEMM and its weight gradient are computed: a loop over experts, or ``F.grouped_mm``.

The loop reads ``offsets`` on the host, which costs nothing on CPU and a synchronisation on a GPU.
``F.grouped_mm`` reads them on the device, wants rows of a multiple of 16 bytes (so operands are
padded where they are not) and knows float32, float16 and bfloat16 only.
"""

from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

_GROUPED_MM_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def uses_grouped_mm(x: Tensor) -> bool:
    """Whether rows ``x`` go to ``F.grouped_mm``: on an accelerator, in a dtype that it knows."""
    return x.device.type != "cpu" and x.dtype in _GROUPED_MM_DTYPES


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


def loop_weight_grad(grad: Tensor, x: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """``(N, F), (N, D) -> (E, F, D), (E, F)``: gradients of weight and bias, exact zeros without rows."""
    bounds = cast(list[int], offsets.tolist())
    grad_weight = x.new_empty(len(bounds) - 1, grad.shape[1], x.shape[1])
    grad_bias = x.new_empty(len(bounds) - 1, grad.shape[1])
    for expert, (start, end) in enumerate(pairwise(bounds)):
        if start == end:
            grad_weight[expert] = 0
        else:
            torch.mm(grad[start:end].mT, x[start:end], out=grad_weight[expert])
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


def grouped_mm_weight_grad(grad: Tensor, x: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """The same as :func:`loop_weight_grad` through ``F.grouped_mm`` and ``segment_reduce``."""
    features, dim = grad.shape[1], x.shape[1]
    live = (torch.arange(x.shape[0], device=x.device) < offsets[-1]).unsqueeze(-1)
    grad, x = torch.where(live, grad, 0), torch.where(live, x, 0)
    product = F.grouped_mm(_aligned(grad, -1).mT, _aligned(x, -1), offs=offsets[1:].int())[:, :features, :dim]
    has_rows = (offsets.diff() > 0)[:, None, None]
    grad_weight = torch.where(has_rows, product, 0).contiguous()
    grad_bias = torch.segment_reduce(grad.float(), "sum", offsets=offsets, axis=0, unsafe=True, initial=0.0)
    return grad_weight, grad_bias.to(grad.dtype)


def _aligned(x: Tensor, dim: int) -> Tensor:
    """Pads ``dim`` with zeros until a row takes a multiple of 16 bytes; makes it contiguous."""
    short = -x.shape[dim] % (16 // x.element_size())
    if short:
        x = F.pad(x, (0, short) if dim == -1 else (0, 0, 0, short))
    return x.contiguous()
