"""Routing with the gate's linear layer in the same kernel: decisions, sums and gradients."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.flop_counter import FlopCounterMode

from moekit_kernels.routing import Routed, blocks_linear, route_linear, route_reference
from moekit_kernels.routing.outputs import FLOAT_OUTPUTS, RouteOutputs
from tests.oracles import poisoned_empty
from tests.strategies import few
from tests.triton.route_linear_cases import BF16, DTYPES, FP16, FP32, Case, a_case
from tests.triton.tolerances import assert_near

OPS = torch.ops.moekit
FLOATS = ("gates", "logits", "probs", "prob_sum", "gate_sum", "logsumexp_sq_sum", "entropy_sum")


def field(routed: Routed, name: str) -> Tensor:
    """A field of the routing or of its sums."""
    return getattr(routed if hasattr(routed, name) else routed.sums, name)


def flat(routed: Routed) -> list[Tensor]:
    """All tensors."""
    return [*routed[:5], *routed.counts, *routed.sums]


def run(case: Case, impl: str, dtype: torch.dtype | None = None) -> tuple[Routed, list[Tensor]]:
    """Outputs and the gradients of all operands, from one gradient for every output."""
    leaves = [t if t is None else t.detach().to(dtype or t.dtype).requires_grad_() for t in case[:3]]
    routed = route_linear(leaves[0], leaves[1], case.top_k, bias=leaves[2], impl=impl, **case.options)
    generator = torch.Generator().manual_seed(3)
    outputs = [field(routed, name) for name in FLOATS]
    incoming = [torch.randn(f.shape, generator=generator, dtype=torch.float64).to(f) for f in outputs]
    return routed, list(torch.autograd.grad(outputs, [t for t in leaves if t is not None], incoming))


def check(case: Case) -> None:
    """Holds the kernels to the reference in float64."""
    actual, gradients = run(case, "triton")
    exact, exact_gradients = run(case, "reference", torch.float64)
    assert torch.equal(actual.valid, exact.valid)
    if not torch.equal(actual.ids, exact.ids):  # scores that rounding ties
        return
    for a, b in zip(actual.counts, exact.counts, strict=True):
        assert torch.equal(a, b.to(a.dtype))
    for name in FLOATS:
        a, b = field(actual, name), field(exact, name)
        assert a.dtype == FP32
        if a.ndim == 0:
            torch.testing.assert_close(a.double(), b, rtol=5e-6, atol=1e-6 * len(actual.valid))
        else:
            assert_near(a, b, FP32, name)
    operands = [t for t in case[:3] if t is not None]
    for gradient, expected, operand in zip(gradients, exact_gradients, operands, strict=True):
        assert gradient.dtype == operand.dtype
        assert_near(gradient, expected, operand.dtype, "gradient")


@st.composite
def cases(draw: st.DrawFn) -> Case:
    x_dtype, w_dtype = draw(st.sampled_from(DTYPES))
    experts = draw(st.sampled_from([1, 2, 7, 12, 16, 60, 130]))
    scoring, renormalize = draw(
        st.sampled_from(
            [
                *(("softmax", each) for each in (True, False)),
                ("topk_softmax", True),
                ("sigmoid", True),
                ("sqrt_softplus", True),
            ]
        )
    )
    groups = draw(st.sampled_from([None, 1, *(g for g in (2, 4) if experts % g == 0)]))
    topk_groups = None if groups is None else draw(st.integers(1, groups))
    open_experts = experts if groups is None else experts // groups * topk_groups
    tokens, dim = draw(st.sampled_from([0, 1, 3, 19, 140])), draw(st.sampled_from([1, 5, 64, 100, 300]))
    options = {
        "scoring": scoring,
        "renormalize": renormalize,
        "scaling_factor": draw(st.sampled_from([1.0, 2.5])),
        "selection_bias": 0.3 * torch.randn(experts) if draw(st.booleans()) else None,
        "num_groups": groups,
        "topk_groups": topk_groups,
        "group_score": "top2_sum" if groups is None else draw(st.sampled_from(["top2_sum", "max"])),
        "mask": torch.rand(tokens) > 0.3 if draw(st.booleans()) else None,
    }
    top_k = min(3, open_experts)
    return a_case(tokens, dim, experts, top_k, x_dtype, w_dtype, draw(st.booleans()), **options)


@settings(few, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=cases())
def test_outputs_and_gradients_are_those_of_the_reference(device, case: Case) -> None:
    check(case.to(device))


@pytest.mark.parametrize(("tokens", "dim", "experts", "top_k"), [(600, 300, 5, 2), (70, 40, 200, 8), (33, 24, 256, 64)])
def test_many_tokens_and_many_experts(device, tokens: int, dim: int, experts: int, top_k: int) -> None:
    check(a_case(tokens, dim, experts, top_k, BF16, FP32, True).to(device))


@pytest.mark.parametrize("dtypes", [(BF16, BF16), (BF16, FP32), (FP32, FP32), (FP16, FP16)], ids=str)
@pytest.mark.parametrize(
    ("tokens", "experts", "bias"), [(150, 6, True), (70, 130, True), (33, 20, False), (1, 7, True)]
)
def test_gradients_of_logits_in_a_launch_of_their_own(
    device, monkeypatch: pytest.MonkeyPatch, tokens: int, experts: int, bias: bool, dtypes
) -> None:
    """As for many tokens; the mask and every output's gradient pass through."""
    monkeypatch.setattr(blocks_linear, "_MOST_TOGETHER", 0)
    mask = torch.rand(tokens) > 0.3
    check(a_case(tokens, 40, experts, 2, *dtypes, bias, mask=mask).to(device))


@pytest.mark.parametrize("dtypes", [(FP32, FP32), (FP16, FP16), (FP16, FP32), (FP32, BF16), (BF16, FP16)], ids=str)
@pytest.mark.parametrize(("experts", "most_together"), [(129, 4096), (256, 0), (256, 4096)])
def test_experts_that_are_multiplied_in_pieces(
    device, monkeypatch: pytest.MonkeyPatch, experts: int, dtypes, most_together: int
) -> None:
    """Several parts of x and more than 128 experts; bfloat16 beside them, whose experts are multiplied at once."""
    monkeypatch.setattr(blocks_linear, "_MOST_TOGETHER", most_together)
    check(a_case(70, 40, experts, 8, *dtypes, True, mask=torch.rand(70) > 0.3).to(device))


def test_bias_alone_is_trained_by_one_launch(device, monkeypatch: pytest.MonkeyPatch) -> None:
    case = a_case(90, 24, 5, 2, bias=True).to(device)
    gradients = []
    for most in (0, 4096):
        monkeypatch.setattr(blocks_linear, "_MOST_TOGETHER", most)
        bias = case.bias.clone().requires_grad_()
        routed = route_linear(case.x, case.weight, 2, bias=bias, impl="triton")
        gradients.append(
            torch.autograd.grad(routed.gates.square().sum() + routed.sums.prob_sum.square().sum(), bias)[0]
        )
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("x_dtype", [BF16, FP32])
def test_tokens_that_are_not_finite_are_in_no_sum_and_get_no_gradient(device, x_dtype, value: float) -> None:
    case = a_case(19, 40, 6, 2, x_dtype, FP32).to(device)
    clean = route_linear(case.x, case.weight, 2, impl="triton", mask=torch.arange(19, device=device) != 4)
    case.x[4, 7] = value
    x = case.x.requires_grad_()
    routed = route_linear(x, case.weight, 2, impl="triton")
    assert routed.valid.tolist() == [t != 4 for t in range(19)]
    assert routed.gates[4].isnan().all()
    assert routed.logits[4].eq(0).all()
    assert routed.probs[4].eq(0).all()
    assert routed.ids[4].tolist() == [0, 1]
    assert routed.counts.nonfinite_tokens.item() == 1
    assert routed.counts.num_tokens.item() == 18
    for a, b in zip(routed.sums, clean.sums, strict=True):
        assert torch.equal(a, b)
    (gradient,) = torch.autograd.grad(routed.sums.prob_sum.square().sum(), x)
    assert gradient[4].eq(0).all()
    assert gradient.isfinite().all()


def test_no_tokens_give_zero_sums_and_zero_gradients(device) -> None:
    case = a_case(0, 40, 6, 2, bias=True).to(device)
    routed, gradients = run(case, "triton")
    assert all(t.eq(0).all() for t in (*routed.counts, *routed.sums))
    assert all(g.eq(0).all() for g in gradients)
    assert gradients[1].shape == (6, 40)


@pytest.mark.parametrize("tokens", [20, 600])
@pytest.mark.parametrize(
    "needs", [(True, False, False), (False, True, False), (False, False, True), (True, True, False)]
)
def test_gradients_only_of_what_needs_one(device, tokens: int, needs: tuple[bool, bool, bool]) -> None:
    case = a_case(tokens, 70, 6, 2, BF16, FP32, bias=True).to(device)
    leaves = [t.clone().requires_grad_(need) for t, need in zip(case[:3], needs, strict=True)]
    all_leaves = [t.clone().requires_grad_() for t in case[:3]]
    for some in (leaves, all_leaves):
        routed = route_linear(some[0], some[1], 2, bias=some[2], impl="triton")
        (routed.gates.square().sum() + routed.sums.entropy_sum).backward()
    for leaf, other, need in zip(leaves, all_leaves, needs, strict=True):
        assert torch.equal(leaf.grad, other.grad) if need else leaf.grad is None


def test_only_what_is_asked_for_is_returned_and_kept(device) -> None:
    case = a_case(19, 40, 6).to(device)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(tuple(t.shape)) or t, lambda t: t):
        plain = route_linear(case.x, case.weight, 2, impl="triton", with_logits=False)
        assert (plain.logits, plain.probs) == (None, None)
        assert not kept
        trained = route_linear(case.x, case.weight.requires_grad_(), 2, impl="triton", with_logits=False)
        assert (trained.logits, trained.probs) == (None, None)
    assert kept == [(19, 40), (6, 40), (19, 6), (19,), (19, 2)]  # x, weight, logits, valid rows, ids
    whole = route_linear(case.x, case.weight, 2, impl="triton")
    for name in ("gates", "ids", "valid"):
        assert torch.equal(getattr(plain, name), getattr(whole, name))
    for a, b in zip((*plain.counts, *plain.sums), (*whole.counts, *whole.sums), strict=True):
        assert torch.equal(a, b)
    assert whole.logits.shape == whole.probs.shape == (19, 6)
    trained.gates.square().sum().backward()
    assert case.weight.grad.ne(0).any()


@pytest.mark.parametrize("tokens", [20, 600])
def test_the_same_input_gives_the_same_bits_twice_and_no_uninitialised_memory_shows(device, tokens: int) -> None:
    case = a_case(tokens, 300, 12, 3, BF16, FP32, bias=True).to(device)
    first, first_gradients = run(case, "triton")
    with poisoned_empty():
        second, second_gradients = run(case, "triton")
    assert all(torch.equal(a, b) for a, b in zip(flat(first), flat(second), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(first_gradients, second_gradients, strict=True))


@pytest.mark.parametrize("layout", ["columns", "rows apart", "one row"])
def test_tokens_and_weights_of_any_layout(device, layout: str) -> None:
    case = a_case(19, 40, 6, bias=True).to(device)
    x, weight, bias = case[:3]
    if layout == "columns":
        strange = case._replace(x=x.T.contiguous().T, weight=weight.T.contiguous().T)
    elif layout == "rows apart":
        strange = case._replace(
            x=x.repeat(1, 2)[:, :40], weight=weight.repeat(1, 2)[:, :40], bias=bias.repeat(2, 1).T[:, 0]
        )
    else:
        case = case._replace(x=x[:1].repeat(19, 1))
        strange = case._replace(x=x[:1].expand(19, 40))
    for a, b in zip(flat(run(strange, "triton")[0]), flat(run(case, "triton")[0]), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(run(strange, "triton")[1], run(case, "triton")[1], strict=True):
        assert torch.equal(a, b)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck's own
@pytest.mark.parametrize("full", [True, False])
def test_opcheck(device, full: bool) -> None:
    case = a_case(5, 8, 6, 2, bias=full).to(device)
    mask, bias = torch.arange(5, device=device) > 1, torch.zeros(6, device=device)
    rest = (bias, 3, 2, "max", mask) if full else (None, None, None, "top2_sum", None)
    leaves = [None if t is None else t.requires_grad_() for t in case[:3]]
    arguments = (*leaves, 2, "sigmoid", True, 1.5, *rest, True, full)
    torch.library.opcheck(OPS.route_linear.default, arguments)
    out = RouteOutputs(*OPS.route_linear(*arguments))
    grads = (
        [torch.randn(out[place].shape, device=device) for place in FLOAT_OUTPUTS]
        if full
        else [torch.randn(out.gates.shape, device=device)] + [None] * 6
    )
    saved = (*(None if t is None else t.detach() for t in leaves), out.logits.detach(), out.valid, out.ids, rest[-1])
    needs = (True, full, full)
    torch.library.opcheck(OPS.route_linear_backward.default, (*grads, *saved, "sigmoid", True, 1.5, *needs))


def test_compiled_without_a_break_for_any_number_of_tokens(device) -> None:
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(route_linear, backend=counter, fullgraph=True, dynamic=True)
    compilations = set()
    for tokens in (7, 19, 4):
        case = a_case(tokens, 40, 6).to(device)
        x = case.x.requires_grad_()
        routed = compiled(x, case.weight, 2, impl="triton")
        expected = route_linear(x, case.weight, 2, impl="triton")
        assert all(torch.equal(a, b) for a, b in zip(flat(routed), flat(expected), strict=True))
        (mine,), (its,) = (torch.autograd.grad(r.gates.square().sum(), x) for r in (routed, expected))
        assert torch.equal(mine, its)
        compilations.add(counter.frame_count)
    assert len(compilations) == 1


def test_flops_are_those_of_the_products(device) -> None:
    case = a_case(19, 40, 6).to(device)
    with FlopCounterMode(display=False) as forward:
        routed = route_linear(case.x.requires_grad_(), case.weight.requires_grad_(), 2, impl="triton")
    assert forward.get_total_flops() == 2 * 19 * 40 * 6
    with FlopCounterMode(display=False) as backward:
        routed.gates.square().sum().backward()
    assert backward.get_total_flops() == 2 * (2 * 19 * 40 * 6)


def test_a_second_order_and_gradients_without_logits_are_refused(device) -> None:
    case = a_case(5, 8, 6).to(device)
    x = case.x.requires_grad_()
    gates = route_linear(x, case.weight, 2, impl="triton").gates
    (gradient,) = torch.autograd.grad(gates.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=r'route has first-order gradients only.*impl="reference"'):
        gradient.sum().backward()
    out = OPS.route_linear(
        x, case.weight, None, 2, "softmax", True, 1.0, None, None, None, "top2_sum", None, False, False
    )
    with pytest.raises(RuntimeError, match="route_linear has gradients only where with_logits is True"):
        out[0].sum().backward()


def test_other_dtypes_and_sizes_beyond_the_limits_are_refused(device) -> None:
    x, weight = torch.zeros(2, 4, device=device), torch.zeros(257, 4, device=device)
    with pytest.raises(ValueError, match=r'impl="triton" takes x of .*, got torch\.float64'):
        route_linear(x.double(), weight[:3], 1, impl="triton")
    with pytest.raises(ValueError, match=r'impl="triton" takes weight of .*, got torch\.float64'):
        route_linear(x, weight[:3].double(), 1, impl="triton")
    with pytest.raises(ValueError, match=r'impl="triton" takes num_experts up to 256, got 257'):
        route_linear(x, weight, 1, impl="triton")
    assert torch.equal(
        route_linear(x, weight, 1, impl="reference").ids, route_reference(torch.zeros(2, 257, device=device), 1).ids
    )
