"""The grouped GEMM: reference held to a loop over rows, operation and backends held to the reference."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounterWithBackend
from torch.autograd import gradcheck, gradgradcheck

from moekit_kernels.grouped_gemm import backends, grouped_gemm, grouped_gemm_reference
from tests.oracles import assert_close, naive_grouped_linear, poisoned_empty
from tests.strategies import few, routed

OPS = torch.ops.moekit
OFFSETS = {  # of 11 rows
    "all used": [0, 3, 4, 9, 11],
    "empty experts": [0, 0, 6, 6, 11],
    "first takes all": [0, 11, 11, 11, 11],
    "unassigned rows": [0, 2, 2, 5, 8],
    "all unassigned": [0, 0, 0, 0, 0],
}
offsets_cases = pytest.mark.parametrize("offsets", [torch.tensor(v) for v in OFFSETS.values()], ids=OFFSETS)


def _operands(rows=11, experts=4, dim=5, features=3, dtype=torch.float64, bias=True):
    x, weight = torch.randn(rows, dim, dtype=dtype), torch.randn(experts, features, dim, dtype=dtype)
    return x, weight, (torch.randn(experts, features, dtype=dtype) if bias else None)


def _leaves(*tensors):
    return [t if t is None else t.detach().clone().requires_grad_() for t in tensors]


@few
@given(routed(), st.sampled_from([1, 5, 8]), st.sampled_from([1, 3, 8]), st.booleans())
def test_reference_is_the_loop_over_rows(case, dim, features, bias):
    torch.manual_seed(case.seed)
    rows = case.plan
    x, weight, b = _operands(len(rows.token_of_row), case.num_experts, dim, features, bias=bias)
    assert_close(grouped_gemm_reference(x, weight, rows.offsets, b), naive_grouped_linear(x, weight, rows.offsets, b))


@few
@given(
    routed(max_tokens=40),
    st.sampled_from([1, 5, 8]),
    st.sampled_from([1, 3, 8]),
    st.booleans(),
    st.sampled_from([torch.float64, torch.float32]),
)
def test_operation_is_the_reference_in_output_and_gradients(case, dim, features, bias, dtype):
    torch.manual_seed(case.seed)
    rows = case.plan
    tensors = _operands(len(rows.token_of_row), case.num_experts, dim, features, dtype, bias)
    grad = torch.randn(len(rows.token_of_row), features, dtype=dtype)
    results = []
    for function in (grouped_gemm, grouped_gemm_reference):
        x, weight, b = _leaves(*tensors)
        out = function(x, weight, rows.offsets, b)
        out.backward(grad)
        results.append((out, x.grad, weight.grad, None if b is None else b.grad))
    for a, b in zip(*results, strict=True):
        if a is not None:
            assert_close(a, b)


@offsets_cases
@pytest.mark.parametrize("function", [grouped_gemm, grouped_gemm_reference])
def test_gradients_of_both_orders_are_right(function, offsets):
    inputs = tuple(t.requires_grad_() for t in _operands())
    assert gradcheck(lambda x, w, b: function(x, w, offsets, b), inputs)
    assert gradgradcheck(lambda x, w, b: function(x, w, offsets, b), inputs)


@pytest.mark.parametrize("name", ["unassigned rows", "empty experts"])
def test_weight_gradient_operation_is_differentiable(name):
    offsets = torch.tensor(OFFSETS[name])
    grad, x = torch.randn(11, 3, dtype=torch.float64), torch.randn(11, 5, dtype=torch.float64)
    inputs = (grad.requires_grad_(), x.requires_grad_())
    assert gradcheck(lambda g, x: OPS.grouped_gemm_weight_grad(g, x, offsets, True, "auto"), inputs)
    assert gradgradcheck(lambda g, x: OPS.grouped_gemm_weight_grad(g, x, offsets, True, "auto"), inputs)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck's own
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("strided", [True, False])
def test_opcheck(bias, strided):
    x, weight, b = _operands(bias=bias)
    if strided:
        x, weight = torch.randn(5, 11).double().T, weight.mT.contiguous().mT
    offsets = torch.tensor(OFFSETS["unassigned rows"])
    torch.library.opcheck(OPS.grouped_gemm.default, (*_leaves(x, weight), offsets, *_leaves(b), "torch"))
    grad = torch.randn(3, 11).double().T if strided else torch.randn(11, 3).double()
    torch.library.opcheck(OPS.grouped_gemm_weight_grad.default, (*_leaves(grad, x), offsets, bias, "torch"))


@offsets_cases
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("dim", "features"), [(16, 32), (5, 3), (16, 7)], ids=["aligned", "odd", "mixed"])
@pytest.mark.parametrize("bias", [True, False])
def test_grouped_mm_is_the_loop(offsets, dtype, dim, features, bias):
    x, weight, b = _operands(dim=dim, features=features, dtype=torch.float32, bias=bias)
    x, weight = x.to(dtype), (weight / dim**0.5).to(dtype)
    b = None if b is None else b.to(dtype)
    grad = torch.randn(11, features).to(dtype)
    with poisoned_empty():
        out = backends.grouped_mm_linear(x, weight, offsets, b)
        grads = backends.grouped_mm_weight_grad(grad, x, offsets, True)
    assert_close(out, backends.loop_linear(x, weight, offsets, b))
    for a, b in zip(grads, backends.loop_weight_grad(grad, x, offsets, True), strict=True):
        assert_close(a, b)
    assert not out[offsets[-1] :].any()
    assert not any(g[offsets.diff() == 0].any() for g in grads)


def test_grouped_mm_takes_transposed_weights_and_expanded_gradients():
    x, weight, _ = _operands(dim=16, features=8, dtype=torch.float32)
    offsets = torch.tensor(OFFSETS["unassigned rows"])
    grad = torch.ones(()).expand(11, 8)
    assert_close(
        backends.grouped_mm_linear(grad, weight.mT, offsets, None),
        backends.loop_linear(grad, weight.mT, offsets, None),
    )
    for a, b in zip(
        backends.grouped_mm_weight_grad(grad, x, offsets, True),
        backends.loop_weight_grad(grad, x, offsets, True),
        strict=True,
    ):
        assert_close(a, b)


def test_grouped_mm_of_no_rows_is_the_loop():
    x, weight, b = _operands(rows=0, dtype=torch.float32)
    offsets = torch.zeros(5, dtype=torch.int64)
    assert backends.grouped_mm_linear(x, weight, offsets, b).shape == (0, 3)
    grads = backends.grouped_mm_weight_grad(torch.zeros(0, 3), x, offsets, True)
    for a, b in zip(grads, backends.loop_weight_grad(torch.zeros(0, 3), x, offsets, True), strict=True):
        torch.testing.assert_close(a, b)


def test_grouped_mm_takes_the_rows_that_it_supports():
    assert backends.backend_of("torch", torch.zeros(1)).linear is backends.loop_linear
    assert backends.backend_of("torch", torch.zeros(1, device="meta")).linear is backends.grouped_mm_linear
    wide = torch.zeros(1, device="meta", dtype=torch.float64)
    assert backends.backend_of("torch", wide).linear is backends.loop_linear


@pytest.mark.parametrize("function", [backends.loop_weight_grad, backends.grouped_mm_weight_grad])
def test_without_a_bias_there_is_no_bias_gradient(function):
    x, grad, offsets = torch.randn(11, 5), torch.randn(11, 3), torch.tensor(OFFSETS["unassigned rows"])
    of_weight, of_bias = function(grad, x, offsets, False)
    assert torch.equal(of_weight, function(grad, x, offsets, True)[0])
    assert of_bias.shape == (0, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.ones(11, 3)}, r"x must be \(N, D\) and weight \(E, F, D\), got \(11, 3\) and \(4, 3, 5\)"),
        ({"offsets": torch.zeros(3, dtype=torch.int64)}, r"offsets must have shape \(5,\), got \(3,\)"),
        ({"bias": torch.ones(4, 7)}, r"bias must have shape \(4, 3\), got \(4, 7\)"),
        ({"x": torch.ones(11, 5)}, r"must have one dtype, got torch.float32, torch.float64, torch.float64. Con"),
        ({"impl": "loop"}, "impl must be one of 'auto', 'reference', 'torch', 'triton', got 'loop'"),
        ({"impl": "triton"}, r'impl="triton" takes operands of bfloat16, float16 and float32, got torch.float64'),
    ],
)
def test_arguments_that_do_not_fit_are_named(change, message):
    x, weight, bias = _operands()
    with pytest.raises(ValueError, match=message):
        grouped_gemm(**{"x": x, "weight": weight, "offsets": torch.tensor(OFFSETS["all used"]), "bias": bias} | change)


@offsets_cases
@pytest.mark.parametrize(
    ("function", "weight_gradient"),
    [(backends.loop_linear, backends.loop_weight_grad), (backends.grouped_mm_linear, backends.grouped_mm_weight_grad)],
    ids=["loop", "grouped_mm"],
)
def test_what_unassigned_rows_hold_reaches_nothing(offsets, function, weight_gradient):
    x, weight, b = _operands(dtype=torch.float32)
    grad = torch.randn(11, 3)
    clean_out, clean_grads = function(x, weight, offsets, b), weight_gradient(grad, x, offsets, True)
    x[offsets[-1] :], grad[offsets[-1] :] = torch.nan, torch.inf
    torch.testing.assert_close(function(x, weight, offsets, b), clean_out, rtol=0, atol=0)
    for dirty, clean in zip(weight_gradient(grad, x, offsets, True), clean_grads, strict=True):
        torch.testing.assert_close(dirty, clean, rtol=0, atol=0)


@pytest.mark.parametrize("function", [grouped_gemm, grouped_gemm_reference])
def test_unassigned_rows_and_empty_experts_have_zero_gradients(function):
    x, weight, b = _operands()
    x[8:] = torch.nan
    x, weight, b = _leaves(x, weight, b)
    function(x, weight, torch.tensor(OFFSETS["unassigned rows"]), b).sum().backward()
    assert not x.grad[8:].any()
    assert not weight.grad[1].any()
    assert not b.grad[1].any()
    assert all(t.grad.isfinite().all() and t.grad.any() for t in (x, weight, b))


@offsets_cases
@pytest.mark.parametrize("bias", [True, False])
def test_no_uninitialised_memory_shows(offsets, bias):
    x, weight, b = _leaves(*_operands(bias=bias))
    with poisoned_empty():
        out = grouped_gemm(x, weight, offsets, b)
        out.sum().backward()
    assert_close(out, grouped_gemm_reference(x, weight, offsets, b))
    assert all(t is None or t.grad.isfinite().all() for t in (x, weight, b))


def test_strided_operands_give_the_same_numbers():
    x, weight, b = _operands()
    offsets = torch.tensor(OFFSETS["unassigned rows"])
    expected = grouped_gemm(x, weight, offsets, b)
    strided_x = torch.stack([x, x + 1], dim=-1)[..., 0]
    strided = grouped_gemm(strided_x, weight.mT.contiguous().mT, offsets, b.T.contiguous().T)
    assert not strided_x.is_contiguous()
    assert_close(strided, expected)


def test_autocast_gives_the_autocast_dtype_and_keeps_float64():
    x, weight, b = _operands(dtype=torch.float32)
    offsets = torch.tensor(OFFSETS["all used"])
    exact = grouped_gemm(x, weight, offsets, b)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = grouped_gemm(x, weight, offsets, b)
        reference = grouped_gemm_reference(x, weight, offsets, b)
        wide = grouped_gemm(x.double(), weight.double(), offsets, b.double())
    assert (half.dtype, reference.dtype, wide.dtype) == (torch.bfloat16, torch.bfloat16, torch.float64)
    assert_close(half, exact)
    assert_close(reference, exact, torch.bfloat16)
    assert_close(wide, exact, torch.float32)


def test_compiled_without_a_break_for_any_number_of_rows():
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(grouped_gemm, backend=counter, fullgraph=True, dynamic=True)
    for rows in (11, 7, 23):
        x, weight, b = _leaves(*_operands(rows=rows))
        offsets = torch.tensor([0, 2, 2, 5, rows])
        out = compiled(x, weight, offsets, b)
        out.sum().backward()
        assert_close(out, grouped_gemm_reference(x, weight, offsets, b))
        assert x.grad.isfinite().all()
    assert counter.frame_count == 1
