"""Operands of routing with the gate's linear layer in the same kernel."""

from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
DTYPES = [(BF16, BF16), (BF16, FP32), (FP16, FP16), (FP16, FP32), (FP32, FP32), (FP32, BF16), (BF16, FP16)]
dtypes = pytest.mark.parametrize(("x_dtype", "w_dtype"), DTYPES, ids=lambda d: str(d).removeprefix("torch."))


class Case(NamedTuple):
    """Arguments of ``route_linear``."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    top_k: int
    options: dict

    def to(self, device: torch.device) -> "Case":
        moved = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in self.options.items()}
        tensors = (None if t is None else t.to(device) for t in self[:3])
        return Case(*tensors, self.top_k, moved)


def a_case(
    tokens: int = 19, dim: int = 40, experts: int = 6, top_k: int = 2, x_dtype=FP32, w_dtype=FP32, bias=False, **options
) -> Case:
    generator = torch.Generator().manual_seed(11)
    x = torch.randn(tokens, dim, generator=generator).to(x_dtype)
    weight = (3 / dim**0.5 * torch.randn(experts, dim, generator=generator)).to(w_dtype)
    return Case(x, weight, torch.randn(experts, generator=generator).to(w_dtype) if bias else None, top_k, options)


def exact_logits(case: Case) -> Tensor:
    """In float64."""
    return F.linear(case.x.double(), case.weight.double(), None if case.bias is None else case.bias.double())
