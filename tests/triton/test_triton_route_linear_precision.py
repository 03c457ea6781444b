"""Routing with the gate's linear layer in the same kernel: precision of its logits."""

import pytest
import torch
import torch.nn.functional as F
import triton
import triton.language as tl

from moekit_kernels.routing import route_linear
from moekit_kernels.routing.kernel_products import part
from tests.triton.route_linear_cases import BF16, FP16, FP32, Case, a_case, dtypes, exact_logits


def scaled(case: Case, name: str) -> Case:
    """The case with operands that are hard for sums of parts."""
    generator = torch.Generator().manual_seed(5)
    x, weight = case.x.float(), case.weight.float()
    if name == "large":
        x, weight = x * 1e3, weight * 1e13 if case.weight.dtype != FP16 else weight * 1e3
    elif name == "small":
        x, weight = x * 1e-3, weight * 1e-25 if case.weight.dtype != FP16 else weight * 1e-3
    elif name == "spread":
        weight = weight * 2.0 ** torch.randint(-12, 12, weight.shape, generator=generator)
    elif name == "cancelling":  # halves that differ by some bits of the last part
        x[:, 1::2] = x[:, ::2]
        weight[:, 1::2] = -weight[:, ::2] * (1 + 2.0**-16)
    return case._replace(x=x.to(case.x.dtype), weight=weight.to(case.weight.dtype))


@dtypes
@pytest.mark.parametrize(
    ("name", "dim"),
    [("plain", 256), ("plain", 4096), ("large", 256), ("small", 256), ("spread", 256), ("cancelling", 256)],
)
def test_logits_are_as_exact_as_those_of_float32(device, name: str, dim: int, x_dtype, w_dtype) -> None:
    """Errors are in units of ``sum |x| |w|``, which bounds those of every order of summation."""
    case = scaled(a_case(64, dim, 12, 1, x_dtype, w_dtype), name).to(device)
    exact = exact_logits(case)
    scale = F.linear(case.x.double().abs(), case.weight.double().abs())
    logits = route_linear(case.x, case.weight, 1, impl="triton").logits
    single = F.linear(case.x.float(), case.weight.float())
    error, error_of_single = (((some.double() - exact).abs() / scale).max().item() for some in (logits, single))
    assert error <= 2 * max(error_of_single, 2.0**-24)


@dtypes
def test_a_product_alone_has_the_error_of_one_rounding(device, x_dtype, w_dtype) -> None:
    """Of one nonzero product the error is that of its parts: two bfloat16 ones would leave 2**-16."""
    generator = torch.Generator().manual_seed(0)
    values = (torch.rand(256, generator=generator) + 1).to(x_dtype)
    weight = (torch.rand(16, 256, generator=generator) + 1).to(w_dtype)
    logits = route_linear(values.diag().to(device), weight.to(device), 1, impl="triton").logits.double().cpu()
    exact = values.double()[:, None] * weight.double().T
    assert ((logits - exact).abs() / exact).max() <= 2.0**-23


@triton.jit
def parts_kernel(values, parts, SIZE: tl.constexpr):
    place = tl.arange(0, SIZE)
    x = tl.load(values + place)
    for index in tl.static_range(3):
        tl.store(parts + index * SIZE + place, part(x, index))


@pytest.mark.parametrize("dtype", [FP32, FP16, BF16])
def test_three_parts_add_up_to_every_number(device, dtype: torch.dtype) -> None:
    info = torch.finfo(dtype)
    bits = torch.randint(-(2**31), 2**31, (4096,), generator=torch.Generator().manual_seed(0), dtype=torch.int64)
    values = bits.to(torch.int32).view(FP32)
    values = torch.where(values.isfinite(), values, 1.0).clamp(info.min, info.max).to(dtype)
    values[:6] = torch.tensor([info.max, info.min, info.tiny, 0.0, -0.0, info.smallest_normal], dtype=torch.float64).to(
        dtype
    )
    parts = torch.empty(3, len(values), dtype=BF16, device=device)
    parts_kernel[(1,)](values.to(device), parts, SIZE=len(values))
    needed = {BF16: 1, FP16: 2, FP32: 3}[dtype]
    total = parts.cpu().double()[:needed].sum(0)
    normal = values.double().abs() > 2.0**-100
    assert torch.equal(total[normal], values.double()[normal])
    assert (total - values.double()).abs().max() < 2.0**-126  # what is below may be flushed to zero
    assert parts.isfinite().all()
