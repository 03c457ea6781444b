"""Forward-mode differentiation: right through references, refused by operations that have reverse mode only."""

import math

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vmap

from moekit import FFNExperts, HashRouter, SparseMoE, combine, plan_dispatch
from moekit_kernels.availability import triton_is_installed
from moekit_kernels.grouped_gemm import grouped_gemm
from moekit_kernels.routing import route
from moekit_kernels.routing.sums import entropy

pytestmark = [
    # torch's own, from its decompositions for forward mode
    pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated"),
    # and from its batching rules
    pytest.mark.filterwarnings("ignore:torch.searchsorted.*non-contiguous"),
    pytest.mark.filterwarnings("ignore:There is a performance drop because"),
]

TOKENS, DIM, EXPERTS = 5, 4, 3
REFUSED = r"{} has no forward-mode derivative \(torch\.func\.jvp, jacfwd, hessian\): use {}, which has, or reverse"
MOE_FFN = REFUSED.format("moe_ffn", 'impl="reference"')


def _layer(impl: str = "auto", **options) -> SparseMoE:
    return SparseMoE.ffn(DIM, 6, EXPERTS, 2, impl=impl, dtype=torch.float64, **options)


def _tokens() -> torch.Tensor:
    return torch.randn(TOKENS, DIM, dtype=torch.float64)


@pytest.mark.parametrize("options", [{}, {"bias": True, "activation": "gelu", "shared_hidden_dim": 3}])
def test_the_reference_has_the_derivative_of_finite_differences(options):
    moe, x = _layer("reference", **options), _tokens()
    weights = {name: weight.detach() for name, weight in moe.named_parameters()}
    direction = {name: torch.randn_like(weight) for name, weight in weights.items()}

    def output(weights, x):
        return functional_call(moe, weights, (x,)).output

    dx = torch.randn_like(x)
    _, tangent = jvp(output, (weights, x), (direction, dx))
    step = 1e-6
    ahead, behind = (
        output({name: weights[name] + s * direction[name] for name in weights}, x + s * dx) for s in (step, -step)
    )
    # Central differences in float64: an error of the step's square and of rounding over the step.
    torch.testing.assert_close(tangent, (ahead - behind) / (2 * step), rtol=1e-7, atol=1e-8)
    assert tangent.abs().max() > 1e-3


def test_the_reference_agrees_with_reverse_mode_also_in_nested_transforms():
    moe, x = _layer("reference"), _tokens()

    def loss(x):
        return moe(x).output.square().sum()

    torch.testing.assert_close(jacfwd(loss)(x), jacrev(loss)(x))
    torch.testing.assert_close(hessian(loss)(x), jacrev(jacrev(loss))(x))


def _by_autograd(f):
    def gradient(p):
        leaf = p.clone().requires_grad_()
        return torch.autograd.grad(f(leaf), leaf)[0]

    return gradient


def _beside_another_transform(f):
    """The gradient of ``f`` at an outer level, with an inner level that differentiates something else."""
    return grad(lambda q: grad(lambda r: r.sum() * f(q))(torch.ones(1)).sum())


@pytest.mark.parametrize("derivative", [_by_autograd, grad, jacrev, jacfwd, _beside_another_transform])
def test_the_entropy_at_a_probability_of_zero_has_derivative_zero_in_every_mode(derivative):
    probs = torch.tensor([0.5, 0.25, 0.0, 0.25], dtype=torch.float64)
    assert entropy(probs).item() == pytest.approx(1.5 * math.log(2))
    slope = derivative(lambda p: entropy(1 * p))(probs)
    torch.testing.assert_close(slope, torch.where(probs > 0, -1 - probs.log(), 0))


def _dual_level(f, x):
    with forward_ad.dual_level():
        return f(forward_ad.make_dual(x, torch.ones_like(x)))


TRANSFORMS = {
    "jvp": lambda f, x: jvp(f, (x,), (x,)),
    "jvp of what requires a gradient": lambda f, x: jvp(f, (x.clone().requires_grad_(),), (x,)),
    "jacfwd": lambda f, x: jacfwd(f)(x),
    "hessian": lambda f, x: hessian(lambda x: f(x).sum())(x),
    "dual numbers": _dual_level,
    "outer level": lambda f, x: jvp(lambda x: jvp(lambda y: f(x) * y, (x,), (x,))[1], (x,), (x,)),
    "gradient of jvp": lambda f, x: grad(lambda x: jvp(f, (x,), (x,))[1].sum())(x),
    "vmap of jvp": lambda f, x: vmap(lambda dx: jvp(f, (x,), (dx,))[1])(torch.stack([x, x])),
    "jvp of vmap": lambda f, x: jvp(vmap(f), (torch.stack([x, x]),), (torch.stack([x, x]),)),
}


@pytest.mark.parametrize("transform", list(TRANSFORMS))
def test_the_fused_layer_refuses_every_transform_with_tangents(transform):
    moe = _layer().requires_grad_(False)
    with pytest.raises(NotImplementedError, match=MOE_FFN):
        TRANSFORMS[transform](lambda x: moe(x).output, _tokens())


def test_tangents_of_weights_alone_and_of_cotangents_are_refused():
    moe, x = _layer(), _tokens()
    weights = {name: weight.detach() for name, weight in moe.named_parameters()}
    for name in ("experts.up_proj", "experts.down_proj"):
        one = {name: weights[name]}
        with pytest.raises(NotImplementedError, match=MOE_FFN):
            jvp(lambda w: functional_call(moe, w, (x,)).output, (one,), (one,))
    output = moe(x).output
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match=MOE_FFN):
        output.backward(forward_ad.make_dual(torch.ones_like(output), torch.ones_like(output)))


def test_what_has_no_tangent_computes_inside_a_transform():
    moe, x = _layer(), _tokens()
    expected = moe(x).output
    value, tangent = jvp(lambda y: moe(x).output * y, (torch.ones_like(x),), (torch.ones_like(x),))
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(tangent, expected)


def test_compiled_code_refuses_and_stays_one_graph_otherwise():
    moe, x = _layer().requires_grad_(False), _tokens()

    def output(x):
        return moe(x).output

    compiled = torch.compile(output, fullgraph=True)
    torch.testing.assert_close(compiled(x), output(x))
    with pytest.raises(NotImplementedError, match=MOE_FFN):
        jvp(torch.compile(output), (x,), (x,))
    with pytest.raises(NotImplementedError, match=MOE_FFN):
        torch.compile(lambda x: jvp(output, (x,), (x,))[1])(x)
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported, match="no forward-mode derivative"):
        torch.compile(lambda x: jvp(output, (x,), (x,))[1], fullgraph=True)(x)


def test_grouped_products_refuse():
    rows, weight, offsets = torch.randn(6, DIM), torch.randn(EXPERTS, 2, DIM), torch.tensor([0, 1, 4, 6])
    message = REFUSED.format("grouped_gemm", 'impl="reference"')
    for place in range(2):
        inputs = [rows, weight]

        def linear(t, place=place, inputs=inputs):
            return grouped_gemm(*inputs[:place], t, *inputs[place + 1 :], offsets)

        with pytest.raises(NotImplementedError, match=message):
            jvp(linear, (inputs[place],), (inputs[place],))
    output = grouped_gemm(rows.requires_grad_(), weight, offsets)
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match=message):
        output.backward(forward_ad.make_dual(torch.ones_like(output), torch.ones_like(output)))


@pytest.mark.skipif(not triton_is_installed(), reason="Triton is not installed")
def test_kernels_refuse_before_they_start():
    x, ids = torch.randn(3, EXPERTS), torch.tensor([[0], [1], [2]])
    plan = plan_dispatch(ids, EXPERTS)
    weight, gates = torch.randn(EXPERTS, 2, EXPERTS), torch.rand(3, 1)
    calls = {
        "route": (lambda x: route(x, 2, impl="triton").gates, x, 'impl="reference"'),
        "combine": (lambda x: combine(x, plan, gates, impl="triton"), x, 'impl="torch"'),
        "grouped_gemm": (lambda x: grouped_gemm(x, weight, plan.offsets, impl="triton"), x, 'impl="reference"'),
    }
    for operation, (call, x, remedy) in calls.items():
        with pytest.raises(NotImplementedError, match=REFUSED.format(operation, remedy)):
            jvp(call, (x,), (x,))
    with pytest.raises(NotImplementedError, match=REFUSED.format("combine", 'impl="torch"')):
        jvp(lambda gates: combine(x, plan, gates, impl="triton"), (gates,), (gates,))


def test_a_plan_computes_in_forward_mode_and_adds_no_derivative():
    gates, ids = torch.rand(4, 1), torch.tensor([[0], [0], [1], [0]])

    def weighted(gates):
        plan = plan_dispatch(ids, 2, capacity=1, gates=gates, drop_policy="gate")
        return combine(torch.ones(4, 1), plan, gates, impl="torch")

    torch.testing.assert_close(jvp(weighted, (gates,), (torch.ones_like(gates),))[1].sum(), torch.tensor(4.0))


def test_experts_by_function_refuse_in_the_grouped_product():
    experts = FFNExperts(DIM, 6, EXPERTS, activation=torch.tanh)
    moe = SparseMoE(HashRouter(EXPERTS, 7), experts)
    ids = torch.arange(TOKENS)
    with pytest.raises(NotImplementedError, match=REFUSED.format("grouped_gemm", 'impl="reference"')):
        jvp(lambda x: moe(x, router_input=ids).output, (torch.randn(TOKENS, DIM),), (torch.randn(TOKENS, DIM),))
