"""The grouped GEMM kernels against the reference: outputs, gradients, layouts, loads by descriptor and by pointer."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounterWithBackend

from moekit_kernels import targets
from moekit_kernels.availability import interpreting
from moekit_kernels.configs import override
from moekit_kernels.grouped_gemm import grouped_gemm, grouped_gemm_reference
from tests.oracles import poisoned_empty
from tests.triton.tolerances import assert_near

OPS = torch.ops.moekit
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@pytest.fixture(params=["pointers", "descriptors"])
def loads(request, monkeypatch):
    """Interpreted, weights are read both ways; on a GPU as its target does."""
    if interpreting():
        tma = request.param == "descriptors"
        monkeypatch.setattr(targets, "INTERPRETER", targets.INTERPRETER._replace(tma=tma))
    elif request.param == "pointers":
        pytest.skip("a GPU reads weights in one way")
    return request.param


def _offsets(num_rows, experts, skew, generator):
    """Where every expert begins: even, by Zipf's law, all to one, many without rows; some rows are unassigned."""
    ids = torch.randint(0, experts + 1, (num_rows,), generator=generator)
    if skew == "zipf":
        weights = 1 / torch.arange(1.0, experts + 2)
        ids = torch.multinomial(weights, num_rows, True, generator=generator) if num_rows else ids
    elif skew == "one":
        ids = torch.where(ids == experts, ids, experts // 2)
    elif skew == "holes":
        ids = torch.where(ids == experts, ids, ids // 3 * 3)
    counts = torch.bincount(ids, minlength=experts + 1)[:experts]
    return torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])


def _case(
    device, dtype=torch.float32, rows=18, dim=24, features=20, experts=5, skew="even", bias=True, n_major=False, seed=0
):
    """Floating operands of the operation, offsets, and a gradient of its output."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape, scale=1.0):
        return (torch.randn(*shape, generator=generator) * scale).to(dtype).to(device)

    weight = normal(experts, features, dim, scale=dim**-0.5)
    tensors = {
        "x": normal(rows, dim),
        "weight": weight.mT.contiguous().mT if n_major else weight,
        "bias": normal(experts, features) if bias else None,
    }
    return tensors, _offsets(rows, experts, skew, generator).to(device), normal(rows, features)


def _leaves(tensors, dtype=None):
    return {
        name: t if t is None else t.detach().to(t.dtype if dtype is None else dtype).requires_grad_()
        for name, t in tensors.items()
    }


def _run(tensors, offsets, grad, function=grouped_gemm, dtype=None, **options):
    leaves = _leaves(tensors, dtype)
    out = function(offsets=offsets, **leaves, **options)
    out.backward(grad.to(out.dtype))
    return {"out": out.detach()} | {name: leaf.grad for name, leaf in leaves.items() if leaf is not None}


def _compare(tensors, offsets, grad, dtype):
    with poisoned_empty():
        actual = _run(tensors, offsets, grad, impl="triton")
    expected = _run(tensors, offsets, grad, grouped_gemm_reference, torch.float64)
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert_near(actual[name], value, dtype, name)


@settings(max_examples=12)
@given(
    rows=st.sampled_from([0, 1, 3, 16, 42]),
    dim=st.sampled_from([1, 7, 16, 40]),
    features=st.sampled_from([1, 5, 16, 24]),
    experts=st.sampled_from([1, 3, 7, 128]),
    skew=st.sampled_from(["even", "zipf", "one", "holes"]),
    flags=st.tuples(*[st.booleans()] * 2),
    dtype=st.sampled_from(DTYPES),
    tma=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_any_case_is_the_reference(rows, dim, features, experts, skew, flags, dtype, tma, seed):
    device = torch.device("cpu" if interpreting() else "cuda")
    case = _case(device, dtype, rows, dim, features, experts, skew, *flags, seed)
    before = targets.INTERPRETER
    targets.INTERPRETER = before._replace(tma=tma)
    try:
        _compare(*case, dtype)
    finally:
        targets.INTERPRETER = before


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n_major", [False, True], ids=["k-major", "n-major"])
@pytest.mark.parametrize("dim", [24, 32])
def test_every_dtype_by_every_kind_of_load(device, loads, dtype, n_major, dim):
    _compare(*_case(device, dtype, n_major=n_major, dim=dim), dtype)


@pytest.mark.parametrize("block", [(32, 16, 16), (16, 32, 32), (64, 64, 32)])
def test_other_tiles_give_the_same(device, loads, block):
    entry = {key: [[0, [*block, 2, 4, 2, 1]]] for key in ("16-bit", "32-bit", "odd")}
    kinds = dict.fromkeys(("forward", "weight_grad"), entry)
    with override(dict.fromkeys(targets.TARGETS, kinds)):
        _compare(*_case(device, features=40), torch.float32)


def test_any_strides_give_the_same_bits(device):
    tensors, offsets, grad = _case(device)
    wide = torch.zeros(*tensors["weight"].shape, 2, device=device)
    wide[..., 0] = tensors["weight"]
    rows = torch.zeros(tensors["x"].shape[1], tensors["x"].shape[0], device=device)
    rows.copy_(tensors["x"].T)
    every_other = offsets.repeat_interleave(2)[::2]
    strided = tensors | {"weight": wide[..., 0], "x": rows.T}
    assert 1 not in strided["weight"].stride()
    assert every_other.stride() == (2,)
    plain = _run(tensors, offsets, grad, impl="triton")
    actual = _run(strided, every_other, grad, impl="triton")
    assert all(torch.equal(actual[name], value) for name, value in plain.items())


def test_experts_without_rows_have_exact_zero_gradients(device):
    tensors, offsets, grad = _case(device, experts=7, skew="holes")
    actual = _run(tensors, offsets, grad, impl="triton")
    empty = offsets.diff() == 0
    assert empty.any()
    assert not actual["weight"][empty].any()
    assert not actual["bias"][empty].any()


def test_what_unassigned_rows_hold_reaches_nothing(device):
    tensors, offsets, grad = _case(device)
    end = int(offsets[-1])
    assert end < len(grad)
    tensors["x"][end:] = torch.nan
    grad[end:] = torch.nan
    actual = _run(tensors, offsets, grad, impl="triton")
    assert not actual["out"][end:].any()
    assert not actual["x"][end:].any()
    assert all(value.isfinite().all() for value in actual.values())


def test_one_experts_weights_of_nan_reach_its_own_rows_only(device, loads):
    tensors, offsets, _ = _case(device, dim=20, n_major=True)
    clean = grouped_gemm(**tensors, offsets=offsets, impl="triton")
    tensors["weight"][1] = torch.nan
    actual = grouped_gemm(**tensors, offsets=offsets, impl="triton")
    own_rows = torch.zeros(len(actual), dtype=torch.bool, device=device)
    own_rows[offsets[1] : offsets[2]] = True
    assert own_rows.any()
    assert actual[own_rows].isnan().all()
    assert torch.equal(actual[~own_rows], clean[~own_rows])


def test_the_same_bits_twice_and_from_a_retained_graph(device):
    tensors, offsets, grad = _case(device)
    first, second = (_run(tensors, offsets, grad, impl="triton") for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    leaves = _leaves(tensors)
    out = grouped_gemm(**leaves, offsets=offsets, impl="triton")
    inputs = list(leaves.values())
    once = torch.autograd.grad(out, inputs, grad, retain_graph=True)
    assert all(map(torch.equal, once, torch.autograd.grad(out, inputs, grad)))


def test_second_order(device):
    tensors, offsets, grad = _case(device)
    results = []
    for function, dtype, options in (
        (grouped_gemm, None, {"impl": "triton"}),
        (grouped_gemm_reference, torch.float64, {}),
    ):
        leaves = _leaves(tensors, dtype)
        inputs = list(leaves.values())
        out = function(offsets=offsets, **leaves, **options)
        first = torch.autograd.grad(out, inputs, grad.to(out.dtype) * out, create_graph=True)
        results.append(torch.autograd.grad(sum(g.square().sum() for g in first), inputs))
    for name, a, b in zip(tensors, *results, strict=True):
        # Products of products: three times as many roundings as in a first-order gradient.
        assert_near(a / 3, b / 3, torch.float16, name)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck's own
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("n_major", [True, False])
def test_opcheck(device, with_bias, n_major):
    tensors, offsets, grad = _case(device, n_major=n_major, bias=with_bias)
    leaves = _leaves(tensors)
    torch.library.opcheck(OPS.grouped_gemm.default, (leaves["x"], leaves["weight"], offsets, leaves["bias"], "triton"))
    operands = (grad.requires_grad_(), leaves["x"], offsets)
    torch.library.opcheck(OPS.grouped_gemm_weight_grad.default, (*operands, with_bias, "triton"))


def test_compiled_without_a_break_for_any_number_of_rows(device):
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(grouped_gemm, backend=counter, fullgraph=True, dynamic=True)
    for rows in (18, 10, 12):
        tensors, offsets, grad = _case(device, rows=rows, seed=rows)
        actual = _run(tensors, offsets, grad, compiled, impl="triton")
        expected = _run(tensors, offsets, grad, impl="triton")
        assert all(torch.equal(actual[name], value) for name, value in expected.items())
    assert counter.frame_count == 1


def test_autocast(device):
    tensors, offsets, grad = _case(device)
    with torch.autocast(device.type, dtype=torch.float16):
        actual = _run(tensors, offsets, grad, impl="triton")
    assert actual["out"].dtype == torch.float16
    assert actual["weight"].dtype == torch.float32
    for name, value in _run(tensors, offsets, grad, grouped_gemm_reference, torch.float64).items():
        # The operands are rounded too, which the tolerance of float16 does not include.
        assert_near(actual[name], value, torch.bfloat16, name)


def test_experts_beyond_two_to_the_31(device):
    """The last expert's weights lie past 32 bits."""
    experts, stride = 3, 2**30 + 2**20
    try:
        flat = torch.empty(stride * experts, dtype=torch.float16, device=device)
    except (RuntimeError, torch.cuda.OutOfMemoryError) as error:
        pytest.skip(f"6.4 GB cannot be mapped: {error}")
    weight = flat.as_strided((experts, 16, 16), (stride, 16, 1))
    small = torch.randn(experts, 16, 16, device=device).half()
    weight.copy_(small)
    x = torch.randn(5, 16, device=device).half()
    offsets = torch.tensor([0, 1, 2, 5], device=device)
    out = grouped_gemm(x, weight, offsets, impl="triton")
    assert_near(out, grouped_gemm(x, small, offsets, impl="triton"), torch.float16)


def test_float64_is_refused_by_name_and_computed_by_auto(device):
    tensors, offsets, _ = _case(device)
    wide = {name: t.double() for name, t in tensors.items()}
    with pytest.raises(ValueError, match=r'impl="triton" takes operands of bfloat16, float16 and float32.*float64'):
        grouped_gemm(**wide, offsets=offsets, impl="triton")
    assert grouped_gemm(**wide, offsets=offsets, impl="auto").dtype == torch.float64
