"""The routing kernels against the plain reference: decisions, sums and gradients."""

from typing import NamedTuple

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from moekit_kernels.routing import Routed, RoutingCounts, RoutingSums, route, route_reference
from moekit_kernels.routing.outputs import FLOAT_OUTPUTS, RouteOutputs
from tests.oracles import poisoned_empty
from tests.strategies import few
from tests.triton.tolerances import assert_near

OPS = torch.ops.moekit
WAYS = [
    *(("softmax", renormalize) for renormalize in (True, False)),
    ("topk_softmax", True),
    *((scoring, renormalize) for scoring in ("sigmoid", "sqrt_softplus") for renormalize in (True, False)),
]
FLOATS = ("gates", "logits", "probs", "prob_sum", "gate_sum", "logsumexp_sq_sum", "entropy_sum")
LAYOUTS = ("rows", "columns", "every other")


class Case(NamedTuple):
    """Arguments of ``route``."""

    logits: Tensor
    top_k: int
    options: dict

    def to(self, device: torch.device) -> "Case":
        moved = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in self.options.items()}
        return Case(self.logits.to(device), self.top_k, moved)


def laid_out(x: Tensor, layout: str) -> Tensor:
    """The same numbers in another order of memory."""
    if layout == "columns":
        return x.T.contiguous().T
    return x.repeat_interleave(2, dim=-1)[..., ::2] if layout == "every other" else x


@st.composite
def cases(draw: st.DrawFn) -> Case:
    num_tokens, num_experts = draw(st.sampled_from([0, 1, 3, 19])), draw(st.sampled_from([1, 2, 7, 12, 16, 60, 128]))
    groups = draw(st.sampled_from([None, *(g for g in (1, 2, 3, 4, 6, 12) if num_experts % g == 0)]))
    topk_groups = None if groups is None else draw(st.integers(1, groups))
    open_experts = num_experts if groups is None else num_experts // groups * topk_groups
    top_k = draw(st.sampled_from(sorted({1, min(3, open_experts), min(20, open_experts)})))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    logits = 3 * torch.randn(num_tokens, num_experts, generator=generator)
    skew = draw(st.sampled_from(["none", "one expert", "ties"]))
    if skew == "one expert":
        logits[:, num_experts // 2] += 9
    elif skew == "ties":
        logits = (logits / 4).round()
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
    scoring, renormalize = draw(st.sampled_from(WAYS))
    masked, biased = draw(st.booleans()), draw(st.booleans())
    mask = torch.rand(num_tokens, generator=generator) > 0.3
    options = {
        "scoring": scoring,
        "renormalize": renormalize,
        "scaling_factor": draw(st.sampled_from([1.0, 2.5])),
        "selection_bias": 0.3 * torch.randn(num_experts, generator=generator) if biased else None,
        "num_groups": groups,
        "topk_groups": topk_groups,
        "group_score": "top2_sum" if groups is None else draw(st.sampled_from(["top2_sum", "max"])),
        "mask": mask if masked else None,
    }
    return Case(laid_out(logits.to(dtype), draw(st.sampled_from(LAYOUTS))), top_k, options)


def a_case(num_tokens: int = 19, num_experts: int = 12, top_k: int = 3, **options) -> Case:
    logits = 3 * torch.randn(num_tokens, num_experts, generator=torch.Generator().manual_seed(7))
    return Case(logits, top_k, {"scaling_factor": 1.5, **options})


def field(routed: Routed, name: str) -> Tensor:
    """A field of the routing, of its counts or of its sums."""
    return next(getattr(part, name) for part in (routed, routed.counts, routed.sums) if hasattr(part, name))


def flat(routed: Routed) -> list[Tensor]:
    """All tensors."""
    return [*routed[:5], *routed.counts, *routed.sums]


def incoming(routed: Routed, seed: int = 3) -> list[Tensor]:
    """A gradient for every float field."""
    generator = torch.Generator().manual_seed(seed)
    fields = [field(routed, name) for name in FLOATS]
    return [torch.randn(f.shape, generator=generator, dtype=torch.float64).to(f) for f in fields]


def run(case: Case, impl: str) -> tuple[Routed, Tensor]:
    """Outputs and the gradient of the logits."""
    logits = case.logits.detach().requires_grad_()
    routed = route(logits, case.top_k, impl=impl, **case.options)
    outputs = [field(routed, name) for name in FLOATS]
    (gradient,) = torch.autograd.grad(outputs, logits, incoming(routed))
    return routed, gradient


def check(case: Case) -> None:
    """Holds the kernels to the reference in float64, ids to the reference in float32."""
    actual, gradient = run(case, "triton")
    exact, exact_gradient = run(case._replace(logits=case.logits.double()), "reference")
    single = route_reference(case.logits, case.top_k, **case.options)
    assert torch.equal(actual.ids, single.ids)
    assert torch.equal(actual.valid, single.valid)
    assert all(torch.equal(a, b) for a, b in zip(actual.counts, single.counts, strict=True))
    assert gradient.dtype == case.logits.dtype
    if torch.equal(single.ids, exact.ids):  # else scores that float32 rounds to a tie
        for name in FLOATS:
            assert field(actual, name).dtype == torch.float32
            a, b = field(actual, name), field(exact, name)
            if a.ndim == 0:  # of order T, and may be a difference of such
                torch.testing.assert_close(a.double(), b, rtol=2e-6, atol=2e-7 * len(actual.valid))
            else:
                assert_near(a, b, torch.float32, name)
        assert_near(gradient, exact_gradient, case.logits.dtype, "gradient")


@settings(few, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=cases())
def test_outputs_and_gradients_are_those_of_the_reference(device, case: Case) -> None:
    check(case.to(device))


@pytest.mark.parametrize(
    ("num_experts", "top_k", "groups"),
    [
        (4096, 64, None),
        (1000, 64, (10, 7, "top2_sum")),
        (1000, 64, (10, 7, "max")),
        (512, 8, (8, 4, "top2_sum")),
        (512, 8, (8, 4, "max")),
        (300, 5, (300, 7, "max")),
    ],
)
def test_many_experts(device, num_experts: int, top_k: int, groups: tuple[int, int, str] | None) -> None:
    names = ("num_groups", "topk_groups", "group_score")
    options = {} if groups is None else {**dict(zip(names, groups, strict=True)), "scoring": "sigmoid"}
    check(a_case(3, num_experts, top_k, **options).to(device))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize(("scoring", "renormalize"), WAYS)
def test_rows_that_are_not_finite_are_in_no_sum_and_get_no_gradient(device, scoring, renormalize, value) -> None:
    case = a_case(scoring=scoring, renormalize=renormalize, num_groups=3, topk_groups=2)
    case.logits[4, 11] = value
    case.logits[5] = value
    case = case.to(device)
    check(case)
    routed, gradient = run(case, "triton")
    bad = torch.tensor([4, 5], device=device)
    assert routed.gates[bad].isnan().all()
    assert routed.probs[bad].eq(0).all()
    assert routed.ids[bad].tolist() == [[0, 1, 2]] * 2
    assert gradient[bad].eq(0).all()
    assert gradient.isfinite().all()
    assert routed.counts.tokens_per_expert.sum().item() == (19 - 2) * 3


@pytest.mark.parametrize("scoring", ["softmax", "topk_softmax", "sigmoid", "sqrt_softplus"])
def test_ties_go_to_the_lowest_id(device, scoring: str) -> None:
    logits = torch.tensor([[0.0, -0.0, 1.0, -0.0, 0.0, 1.0]], device=device)
    assert route(logits, 5, scoring=scoring, impl="triton").ids.tolist() == [[2, 5, 0, 1, 3]]


@pytest.mark.parametrize("scoring", ["softmax", "sigmoid", "sqrt_softplus"])
def test_scores_that_rounding_makes_equal_are_ranked_by_their_logits(device, scoring: str) -> None:
    logits = torch.tensor([[200.0, 300.0, -200.0, -150.0, 250.0]], device=device)
    for impl in ("triton", "reference"):
        assert route(logits, 5, scoring=scoring, impl=impl).ids.tolist() == [[1, 4, 0, 3, 2]]


@pytest.mark.parametrize("biased", [float("nan"), float("inf"), -float("inf")])
def test_ids_are_distinct_and_in_range_whatever_the_bias(device, biased: float) -> None:
    bias = torch.zeros(12)
    bias[[2, 5]] = biased
    case = a_case(selection_bias=bias, num_groups=4, topk_groups=2).to(device)
    ids = route(case.logits, 6, impl="triton", **case.options).ids
    assert all(len(set(row)) == 6 and set(row) <= set(range(12)) for row in ids.tolist())


@pytest.mark.parametrize("renormalize", [True, False])
@pytest.mark.parametrize("scoring", ["softmax", "sigmoid", "sqrt_softplus"])
def test_extreme_logits_keep_everything_finite(device, scoring: str, renormalize: bool) -> None:
    logits = torch.tensor([[-300.0, -301, -302, -303], [300.0, -300, -300, -300], [1e18, -1e18, 0, 0]])
    case = Case(logits[:2], 2, {"scoring": scoring, "renormalize": renormalize, "selection_bias": torch.arange(4.0)})
    routed, gradient = run(case.to(device), "triton")
    assert all(field.isfinite().all() for field in (*flat(routed), gradient))
    torch.testing.assert_close(routed.probs.sum(-1).cpu(), torch.ones(2))
    routed = route(logits.to(device), 2, scoring=scoring, renormalize=renormalize, impl="triton")
    assert routed.probs.isfinite().all()
    assert routed.sums.entropy_sum.isfinite()


@pytest.mark.parametrize("renormalize", [True, False])
def test_sqrt_softplus_over_the_whole_range(device, renormalize: bool) -> None:
    values = torch.cat([torch.linspace(-40, 40, 97), torch.tensor([-1e4, -90, -15.1, -15, -14.9, 90, 1e4])])
    logits = torch.stack([values, torch.linspace(-3, 3, len(values)), values / 2], 1)
    check(Case(logits, 2, {"scoring": "sqrt_softplus", "renormalize": renormalize}).to(device))


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("scoring", ["softmax", "sigmoid", "sqrt_softplus"])
def test_the_gradient_of_each_output_alone(device, scoring: str, name: str) -> None:
    mask = torch.arange(19) % 3 > 0
    case = a_case(scoring=scoring, renormalize=False, mask=mask).to(device)
    gradients = []
    for impl, dtype in (("triton", torch.float32), ("reference", torch.float64)):
        logits = case.logits.detach().to(dtype).requires_grad_()
        value = field(route(logits, 3, impl=impl, **case.options), name)
        value.sum().backward()  # its gradient has a stride of zero
        gradients.append(logits.grad)
    torch.testing.assert_close(gradients[0].double(), gradients[1], rtol=1e-5, atol=2e-6)


def test_the_same_input_gives_the_same_bits_twice_and_no_uninitialised_memory_shows(device) -> None:
    case = a_case(300, 60, 4, mask=torch.arange(300) % 7 > 0).to(device)
    first, first_gradient = run(case, "triton")
    with poisoned_empty():
        second, second_gradient = run(case, "triton")
    assert all(torch.equal(a, b) for a, b in zip(flat(first), flat(second), strict=True))
    assert torch.equal(first_gradient, second_gradient)


def test_offsets_beyond_32_bits(device) -> None:
    stride = 2**30 + 64
    try:
        memory = torch.empty(2 * stride + 8, dtype=torch.float16, device=device)
    except RuntimeError:
        pytest.skip("4 GiB cannot be mapped")
    far = memory.as_strided((3, 8), (stride, 1))
    near = torch.randn(3, 8, generator=torch.Generator().manual_seed(0)).to(far)
    far.copy_(near)
    # Another stride is another specialisation of the kernel: compiled code may round in another order.
    (actual, gradient), (expected, expected_gradient) = (run(Case(x, 2, {}), "triton") for x in (far, near))
    for name in (*Routed._fields[:-2], *RoutingCounts._fields, *RoutingSums._fields):
        a, b = field(actual, name), field(expected, name)
        if name in FLOATS:
            assert_near(a, b, torch.float32, name)
        else:
            assert torch.equal(a, b), name
    assert_near(gradient, expected_gradient, torch.float16, "logits")


def test_a_retained_graph_gives_the_same_gradient_again(device) -> None:
    case = a_case().to(device)
    logits = case.logits.requires_grad_()
    loss = route(logits, 3, impl="triton", **case.options).gates.square().sum()
    first, second = (torch.autograd.grad(loss, logits, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_a_second_order_is_refused_and_names_the_remedy(device) -> None:
    logits = a_case().logits.to(device).requires_grad_()
    gates = route(logits, 3, impl="triton").gates
    (gradient,) = torch.autograd.grad(gates.square().sum(), logits, create_graph=True)
    with pytest.raises(RuntimeError, match=r'route has first-order gradients only.*impl="reference"'):
        gradient.sum().backward()


def test_without_gradients_nothing_is_kept(device) -> None:
    case = a_case().to(device)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        with torch.no_grad():
            route(case.logits.requires_grad_(), 3, impl="triton")
        assert not kept
        route(case.logits, 3, impl="triton")
    assert kept == [(19, 12), (19, 3)]  # logits and ids


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck's own
@pytest.mark.parametrize("layout", ["rows", *(pytest.param(x, marks=pytest.mark.slow) for x in LAYOUTS if x != "rows")])
def test_opcheck(device, layout: str) -> None:
    case = a_case(5, 6, 2).to(device)
    logits = laid_out(case.logits, layout)
    mask, bias = torch.arange(5, device=device) > 1, torch.zeros(6, device=device)
    for rest in ((None, None, None, "top2_sum", None), (bias, 3, 2, "max", mask)):
        arguments = (logits.detach().requires_grad_(), 2, "sigmoid", True, 1.5, *rest, True, True)
        torch.library.opcheck(OPS.route.default, arguments)
    out = RouteOutputs(*OPS.route(*arguments))
    grads = [torch.randn_like(out[place]) for place in FLOAT_OUTPUTS]
    for some in (grads, [grads[0], *[None] * 6]):
        torch.library.opcheck(OPS.route_backward.default, (*some, logits, out.ids, mask, "sigmoid", True, 1.5))


def test_compiled_without_a_break_for_any_number_of_tokens(device) -> None:
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(route, backend=counter, fullgraph=True, dynamic=True)
    compilations = set()
    for tokens in (7, 19, 4):
        case = a_case(tokens, mask=torch.arange(tokens) != 2).to(device)
        logits = case.logits.requires_grad_()
        routed = compiled(logits, 3, impl="triton", **case.options)
        grads = incoming(routed)
        torch.autograd.backward([field(routed, name) for name in FLOATS], grads)
        expected, gradient = run(case, "triton")
        assert all(torch.equal(a, b) for a, b in zip(flat(routed), flat(expected), strict=True))
        assert torch.equal(logits.grad, gradient)
        compilations.add(counter.frame_count)
    assert len(compilations) == 1  # none after the first call


def test_float64_and_sizes_beyond_the_limits_are_refused(device) -> None:
    with pytest.raises(ValueError, match=r'impl="triton" takes logits of .*, got torch\.float64'):
        route(torch.zeros(2, 4, dtype=torch.float64, device=device), 1, impl="triton")
    with pytest.raises(ValueError, match=r'impl="triton" takes num_experts up to 4096, got 4097.*"reference"'):
        route(torch.zeros(2, 4097, device=device), 1, impl="triton")
    with pytest.raises(ValueError, match='impl="triton" takes top_k up to 64, got 65'):
        route(torch.zeros(2, 100, device=device), 65, impl="triton")
