"""The grouped GEMM of int8 weights on CPU: the same as with the dequantised weights, values and gradients."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from moekit_kernels.grouped_gemm import grouped_gemm_reference
from moekit_kernels.grouped_gemm.backends import Backend, grouped_mm_linear, grouped_mm_weight_grad
from moekit_kernels.grouped_gemm_int8 import (
    backends,
    dequantize,
    grouped_gemm_int8,
    grouped_gemm_int8_reference,
    quantize,
)
from tests.oracles import poisoned_empty, relative_error

BACKEND = Backend(grouped_mm_linear, grouped_mm_weight_grad)
OFFSETS = torch.tensor([0, 4, 4, 9, 10])  # expert 1 has no rows; two rows are unassigned
BOUNDS = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 1e-2, torch.float16: 1e-3}


def case(dtype=torch.float32, rows=12, dim=7, features=5, transposed=False):
    torch.manual_seed(0)
    weight = torch.randn(4, dim, features).mT if transposed else torch.randn(4, features, dim)
    quantised = quantize(weight)
    x, bias = torch.randn(rows, dim, dtype=dtype), torch.randn(4, features, dtype=dtype)
    return x.requires_grad_(), quantised, OFFSETS.clamp(max=rows), bias.requires_grad_()


def results(function, x, bias, *arguments):
    output = function(x, *arguments)
    weight = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(output)
    return output, *torch.autograd.grad((output * weight).sum(), [x, bias])


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("impl", ["reference", "torch"])
@pytest.mark.parametrize("rows", [0, 12])
def test_values_and_gradients_are_those_of_dequantised_weights(impl, dtype, transposed, rows):
    x, (values, scale), offsets, bias = case(dtype, rows, transposed=transposed)
    assert values.mT.is_contiguous() == transposed
    with poisoned_empty():
        computed = results(lambda x, *_: grouped_gemm_int8(x, values, scale, offsets, bias, impl=impl), x, bias)
    weight = dequantize(values, scale, torch.float64)
    expected = results(lambda x, *_: grouped_gemm_reference(x.double(), weight, offsets, bias.double()), x, bias)
    for one, other in zip(computed, expected, strict=True):
        assert one.dtype == dtype
        assert (one.double() - other.double()).norm() <= BOUNDS[dtype] * other.double().norm()
    assert computed[0][10:].eq(0).all()


def test_gradients_of_every_order():
    x, (values, scale), offsets, bias = case(torch.float64)

    def compute(x, bias):
        return grouped_gemm_int8(x, values, scale, offsets, bias, impl="torch").square()

    assert torch.autograd.gradcheck(compute, (x, bias))
    assert torch.autograd.gradgradcheck(compute, (x, bias))


def test_float16_does_not_overflow_before_it_is_scaled():
    values, scale = quantize(torch.full((1, 1, 4096), 1e-3))
    x = torch.ones(2, 4096, dtype=torch.float16)
    assert (
        grouped_gemm_int8(x, values, scale, torch.tensor([0, 2]), impl="torch").flatten().tolist()
        == [pytest.approx(4.096, rel=1e-3)] * 2
    )


@pytest.mark.parametrize("transpose", [False, True])
def test_other_devices_multiply_by_weights_that_live_for_the_call(transpose):
    x, (values, scale), offsets, bias = case(dim=8, features=8)
    arguments = (x.detach(), values, scale, offsets, None if transpose else bias.detach(), transpose)
    expected = backends.linear(*arguments)
    assert relative_error(backends.by_dequantised(*arguments, BACKEND), expected) < 1e-6


def test_quantising_rounds_to_half_a_step_and_keeps_zeros_and_layout():
    torch.manual_seed(0)
    weight = torch.randn(3, 20, 50)
    weight[1, 4] = 0
    weight[2, :, 7] = 0
    values, scale = quantize(weight)
    assert values.dtype == torch.int8
    assert values.abs().amax() == 127
    restored = dequantize(values, scale, torch.float32)
    assert ((restored - weight).abs() <= scale.unsqueeze(-1) / 2 * (1 + 1e-5)).all()
    assert restored[1, 4].eq(0).all()
    assert restored[2, :, 7].eq(0).all()
    assert scale[1, 4] == 1
    transposed, same = quantize(weight.mT.contiguous().mT)
    assert transposed.mT.is_contiguous()
    assert torch.equal(transposed, values)
    assert torch.equal(same, scale)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck's own
def test_operation_passes_opcheck_and_compiles_whole():
    x, (values, scale), offsets, bias = case()
    for transpose in (False, True):
        rows = torch.randn(12, 5, requires_grad=True) if transpose else x
        arguments = (rows, values, scale, offsets, None if transpose else bias, transpose, "torch")
        torch.library.opcheck(torch.ops.moekit.grouped_gemm_int8, arguments)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(
        lambda x: grouped_gemm_int8(x, values, scale, offsets, bias), fullgraph=True, backend=counter
    )
    torch.testing.assert_close(compiled(x), grouped_gemm_int8(x, values, scale, offsets, bias))
    assert counter.frame_count == 1


def test_under_autocast_rows_take_its_dtype():
    x, (values, scale), offsets, bias = case()
    with torch.autocast("cpu", torch.bfloat16):
        low = grouped_gemm_int8(x, values, scale, offsets, bias)
    assert low.dtype == torch.bfloat16
    assert relative_error(low, grouped_gemm_int8_reference(x, values, scale, offsets, bias)) < 1e-2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.ones(12, 6)}, r"x must be \(N, D\) and values \(E, F, D\), got \(12, 6\) and \(4, 5, 7\)"),
        ({"values": torch.ones(4, 5, 7)}, "values int8 and scale float32, got torch.float32, torch.float32 and"),
        ({"scale": torch.ones(4, 4)}, r"scale must have shape \(4, 5\), got \(4, 4\)"),
        ({"offsets": torch.tensor([0, 1])}, r"offsets must have shape \(5,\), got \(2,\)"),
        ({"bias": torch.ones(5)}, r"bias must have shape \(4, 5\), got \(5,\)"),
    ],
)
def test_operands_that_do_not_fit_are_refused(change, message):
    x, (values, scale), offsets, bias = case()
    arguments = {"x": x, "values": values, "scale": scale, "offsets": offsets, "bias": bias} | change
    with pytest.raises(ValueError, match=message):
        grouped_gemm_int8(**arguments)


def test_weights_that_cannot_be_quantised_are_refused():
    with pytest.raises(ValueError, match=r"weight must be floating, of shape \(E, F, D\), got torch.float32 \(2, 3\)"):
        quantize(torch.ones(2, 3))
    with pytest.raises(ValueError, match="must be finite to be quantised, got inf or NaN in expert 1"):
        quantize(torch.tensor([[[1.0]], [[torch.nan]]]))
