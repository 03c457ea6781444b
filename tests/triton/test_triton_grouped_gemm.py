"""The grouped GEMM kernels against the reference: outputs, gradients, layouts, loads by descriptor and by pointer."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounterWithBackend

from moekit_kernels import targets
from moekit_kernels.activations import ACTIVATIONS
from moekit_kernels.availability import interpreting
from moekit_kernels.configs import override
from moekit_kernels.grouped_gemm import grouped_gemm, grouped_gemm_reference
from tests.oracles import poisoned_empty
from tests.triton.tolerances import assert_near

OPS = torch.ops.moekit
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
NAMES = ("x", "weight", "bias", "gates")


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
    """Where every expert begins: even, by Zipf's law, all to one, many without rows; some rows belong to nobody."""
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
    device, dtype=torch.float32, tokens=9, top_k=2, dim=24, features=20, experts=5, skew="even", activation="swiglu",
    bias=True, gates=True, gather=True, order="slot", n_major=False, seed=0,
):  # fmt: skip
    """Keyword arguments of the operation; floating ones are rounded to ``dtype``, gates stay float32."""
    generator = torch.Generator().manual_seed(seed)
    num_rows = tokens * top_k
    wide = features * (2 if activation is not None and ACTIVATIONS[activation].gated else 1)

    def normal(*shape, scale=1.0):
        return (torch.randn(*shape, generator=generator) * scale).to(dtype).to(device)

    weight = normal(experts, wide, dim, scale=dim**-0.5)
    slot = torch.randperm(num_rows, generator=generator).to(device)
    tensors = {
        "x": normal(tokens if gather else num_rows, dim),
        "weight": weight.mT.contiguous().mT if n_major else weight,
        "bias": normal(experts, wide) if bias else None,
        "gates": torch.rand(num_rows, generator=generator).to(device) if gates else None,
    }
    rest = {
        "offsets": _offsets(num_rows, experts, skew, generator).to(device),
        "token": torch.randint(0, max(tokens, 1), (num_rows,), generator=generator).to(device) if gather else None,
        "slot": slot,
        "activation": activation,
        "order": order,
    }
    return tensors, rest, normal(num_rows, features)


def _leaves(tensors, dtype=None):
    return {
        name: t if t is None else t.detach().to(t.dtype if dtype is None else dtype).requires_grad_()
        for name, t in tensors.items()
    }


def _run(tensors, rest, grad, **options):
    leaves = _leaves(tensors)
    out = grouped_gemm(**leaves, **rest, **options)
    out.backward(grad)
    return {"out": out.detach()} | {name: leaf.grad for name, leaf in leaves.items() if leaf is not None}


def _expected(tensors, rest, grad, dtype):
    """The reference in float64, with the pre-activations rounded as kernels store them."""
    leaves = _leaves(tensors, torch.float64)
    out = grouped_gemm_reference(**leaves, **rest)
    out.backward(grad.double())
    return {"out": out.detach()} | {name: leaf.grad for name, leaf in leaves.items() if leaf is not None}


def _compare(tensors, rest, grad, dtype):
    with poisoned_empty():
        found = _run(tensors, rest, grad, impl="triton")
    expected = _expected(tensors, rest, grad, dtype)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert_near(found[name], value, dtype, name)


@settings(max_examples=12)
@given(
    tokens=st.sampled_from([0, 1, 3, 8, 21]),
    top_k=st.sampled_from([1, 2, 3]),
    dim=st.sampled_from([1, 7, 16, 40]),
    features=st.sampled_from([1, 5, 16, 24]),
    experts=st.sampled_from([1, 3, 7, 128]),
    skew=st.sampled_from(["even", "zipf", "one", "holes"]),
    activation=st.sampled_from([None, *ACTIVATIONS]),
    flags=st.tuples(*[st.booleans()] * 4),
    order=st.sampled_from(["row", "slot"]),
    dtype=st.sampled_from(DTYPES),
    tma=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_any_case_is_the_reference(
    tokens, top_k, dim, features, experts, skew, activation, flags, order, dtype, tma, seed
):  # fmt: skip
    device = torch.device("cpu" if interpreting() else "cuda")
    bias, gates, gather, n_major = flags
    case = _case(
        device, dtype, tokens, top_k, dim, features, experts, skew, activation, bias, gates, gather, order, n_major,
        seed,
    )  # fmt: skip
    before = targets.INTERPRETER
    targets.INTERPRETER = before._replace(tma=tma)
    try:
        _compare(*case, dtype)
    finally:
        targets.INTERPRETER = before


@pytest.mark.parametrize("activation", [None, *ACTIVATIONS])
@pytest.mark.parametrize("n_major", [False, True], ids=["k-major", "n-major"])
def test_every_activation_by_every_kind_of_load(device, loads, activation, n_major):
    _compare(*_case(device, activation=activation, n_major=n_major, dim=32), torch.float32)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n_major", [False, True], ids=["k-major", "n-major"])
def test_dtypes(device, loads, dtype, n_major):
    _compare(*_case(device, dtype, n_major=n_major), dtype)


@pytest.mark.parametrize("block", [(32, 16, 16), (16, 32, 32), (64, 64, 32)])
def test_other_tiles_give_the_same(device, loads, block):
    entry = {key: [[0, [*block, 2, 4, 2, 1]]] for key in ("16-bit", "32-bit", "odd")}
    kinds = dict.fromkeys(("forward", "glu", "weight_grad"), entry)
    with override(dict.fromkeys(targets.TARGETS, kinds)):
        _compare(*_case(device, features=40), torch.float32)


def test_any_strides_are_right(device):
    tensors, rest, grad = _case(device)
    wide = torch.zeros(*tensors["weight"].shape, 2, device=device)
    wide[..., 0] = tensors["weight"]
    rows = torch.zeros(tensors["x"].shape[1], tensors["x"].shape[0], device=device)
    rows.copy_(tensors["x"].T)
    every_other = {name: rest[name].repeat_interleave(2)[::2] for name in ("token", "slot", "offsets")}
    gates = tensors["gates"].repeat_interleave(2)[::2]
    strided = tensors | {"weight": wide[..., 0], "x": rows.T, "gates": gates}
    assert 1 not in strided["weight"].stride()
    assert all(t.stride() == (2,) for t in (gates, *every_other.values()))
    plain = _run(tensors, rest, grad, impl="triton")
    found = _run(strided, rest | every_other, grad, impl="triton")
    assert all(torch.equal(found[name], value) for name, value in plain.items())


def test_experts_without_rows_have_exact_zero_gradients(device):
    tensors, rest, grad = _case(device, experts=7, skew="holes")
    found = _run(tensors, rest, grad, impl="triton")
    empty = rest["offsets"].diff() == 0
    assert empty.any()
    assert not found["weight"][empty].any()
    assert not found["bias"][empty].any()


def test_what_dead_rows_hold_reaches_nothing(device):
    tensors, rest, grad = _case(device, gather=False, order="row")
    end = int(rest["offsets"][-1])
    assert end < len(grad)
    tensors["x"][end:] = torch.nan
    grad[end:] = torch.nan
    found = _run(tensors, rest, grad, impl="triton")
    assert not found["out"][end:].any()
    assert not found["x"][end:].any()
    assert all(found[name].isfinite().all() for name in NAMES)


def test_one_experts_weights_of_nan_reach_its_own_rows_only(device, loads):
    tensors, rest, grad = _case(device, gather=False, order="row", gates=False, dim=20, n_major=True)
    clean = grouped_gemm(**tensors, **rest, impl="triton")
    tensors["weight"][1] = torch.nan
    found = grouped_gemm(**tensors, **rest, impl="triton")
    mine = torch.zeros(len(grad), dtype=torch.bool, device=device)
    mine[rest["offsets"][1] : rest["offsets"][2]] = True
    assert mine.any()
    assert found[mine].isnan().all()
    assert torch.equal(found[~mine], clean[~mine])


def test_the_same_bits_twice_and_from_a_retained_graph(device):
    tensors, rest, grad = _case(device)
    first, second = (_run(tensors, rest, grad, impl="triton") for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    leaves = _leaves(tensors)
    out = grouped_gemm(**leaves, **rest, impl="triton")
    given_leaves = list(leaves.values())
    once = torch.autograd.grad(out, given_leaves, grad, retain_graph=True)
    twice = torch.autograd.grad(out, given_leaves, grad)
    assert all(map(torch.equal, once, twice))


def test_with_and_without_gradients_the_same_bits(device):
    tensors, rest, _ = _case(device, torch.float16)
    with torch.no_grad():
        quiet = grouped_gemm(**tensors, **rest, impl="triton")
    assert torch.equal(quiet, grouped_gemm(**_leaves(tensors), **rest, impl="triton"))


def test_second_order_says_what_to_do(device):
    tensors, rest, _ = _case(device)
    leaves = _leaves(tensors)
    out = grouped_gemm(**leaves, **rest, impl="triton")
    (grad,) = torch.autograd.grad(out.square().sum(), leaves["x"], create_graph=True)
    with pytest.raises(RuntimeError, match=r'first-order gradients only.*impl="torch"'):
        grad.sum().backward()


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck's own
@pytest.mark.parametrize("keep_pre", [True, False])
@pytest.mark.parametrize("n_major", [True, False])
def test_opcheck(device, keep_pre, n_major):
    tensors, rest, grad = _case(device, n_major=n_major)
    leaves = _leaves(tensors) if keep_pre else tensors
    names = ("x", "weight", "offsets", "bias", "token", "gates", "slot")
    order = tuple((leaves | rest)[name] for name in names)
    torch.library.opcheck(OPS.grouped_gemm.default, (*order, "swiglu", True, keep_pre))
    plain = [t.detach() for t in order]
    _, pre = OPS.grouped_gemm(*plain, "swiglu", True, True)
    torch.library.opcheck(
        OPS.grouped_gemm_backward.default, (grad, *plain, pre, "swiglu", True, [True, keep_pre, True, n_major])
    )


def test_compiled_without_a_break_for_any_number_of_tokens(device):
    counter = CompileCounterWithBackend("aot_eager")

    def step(x, weight, bias, gates, offsets, token, slot):
        return grouped_gemm(
            x, weight, offsets, bias, token=token, gates=gates, slot=slot, order="slot", activation="geglu",
            impl="triton",
        )  # fmt: skip

    compiled = torch.compile(step, backend=counter, fullgraph=True, dynamic=True)
    for tokens in (9, 5, 6):
        tensors, rest, grad = _case(device, tokens=tokens, activation="geglu", seed=tokens)
        leaves = _leaves(tensors)
        out = compiled(**leaves, **{name: rest[name] for name in ("offsets", "token", "slot")})
        out.backward(grad)
        expected = _run(tensors, rest, grad, impl="triton")
        assert torch.equal(out, expected["out"])
        assert all(torch.equal(leaves[name].grad, expected[name]) for name in NAMES)
    assert counter.frame_count == 1


def test_autocast(device):
    tensors, rest, grad = _case(device)
    with torch.autocast(device.type, dtype=torch.float16):
        found = _run(tensors, rest, grad.half(), impl="triton")
    assert found["out"].dtype == torch.float16
    assert found["weight"].dtype == torch.float32
    for name, value in _expected(tensors, rest, grad, torch.float32).items():
        # The operands are rounded too, which the tolerance of float16 does not foresee.
        assert_near(found[name], value, torch.bfloat16, name)


def test_rows_beyond_two_to_the_31(device):
    """A row whose offset passes 32 bits: only the rows that are touched take memory."""
    stride, tokens = 2**20, 2100
    try:
        flat = torch.empty(stride * tokens, dtype=torch.float16, device=device)
    except (RuntimeError, torch.cuda.OutOfMemoryError) as error:
        pytest.skip(f"4.4 GB cannot be mapped: {error}")
    x = flat.as_strided((tokens, 16), (stride, 1))
    token = torch.tensor([0, 2099, 2060, 2048], device=device)
    small = torch.randn(4, 16, device=device).half()
    x[token] = small
    weight = torch.randn(1, 16, 16, device=device).half()
    offsets = torch.tensor([0, 4], device=device)
    out = grouped_gemm(x, weight, offsets, token=token, impl="triton")
    assert_near(out, grouped_gemm(small, weight, offsets, impl="triton"), torch.float16)


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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"impl": "cuda"}, "impl must be one of 'auto'.*got 'cuda'"),
        ({"activation": "tanh"}, "activation must be None or one of .*got 'tanh'"),
        ({"order": "slot", "slot": None}, "order must be 'row', or 'slot' with slot given"),
        ({"offsets": torch.zeros(3, dtype=torch.int64)}, r"offsets must have shape \(6,\), got \(3,\)"),
        ({"gates": torch.ones(3)}, "gates must have one element for each of 18 rows"),
        ({"bias": torch.ones(5, 7)}, r"bias must have shape \(5, 40\), got \(5, 7\)"),
        ({"x": torch.ones(9, 3)}, r"x must be \(rows, D\).*got \(9, 3\)"),
        ({"x": torch.ones(9, 24, dtype=torch.float64)}, "must have one dtype, got torch.float64"),
    ],
)
def test_errors(device, change, message):
    tensors, rest, _ = _case(device)
    with pytest.raises(ValueError, match=message):
        grouped_gemm(**({"impl": "triton"} | tensors | rest | change))


def test_float64_is_refused_where_it_was_asked_for_by_name(device):
    tensors, rest, _ = _case(device)
    wide = {name: t.double() for name, t in tensors.items()}
    with pytest.raises(ValueError, match=r'impl="triton" computes in bfloat16, float16 and float32.*float64'):
        grouped_gemm(**wide, **rest, impl="triton")
    assert grouped_gemm(**wide, **rest, impl="auto").dtype == torch.float64
