"""Hard routing: the expert of largest probability, and the three ways in which the router learns."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moekit import HardRouter

DIM, EXPERTS, TOKENS = 6, 4, 10


def make_router(gradient: str = "scale", **options) -> HardRouter:
    torch.manual_seed(0)
    router = HardRouter(DIM, EXPERTS, gradient=gradient, dtype=torch.float64, **options)
    for parameter in router.parameters():
        nn.init.normal_(parameter)
    return router


def make_input() -> Tensor:
    return torch.randn(TOKENS, DIM, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("gradient", ["scale", "straight_through", "none"])
def test_every_token_goes_to_its_largest_probability(gradient: str) -> None:
    router, x = make_router(gradient), make_input()
    routing = router(x)
    logits = x @ router.gate.layers[0].weight.T
    probs = logits.exp() / logits.exp().sum(-1, keepdim=True)
    torch.testing.assert_close(routing.logits, logits)
    torch.testing.assert_close(routing.probs, probs)
    assert routing.expert_ids.flatten().tolist() == [max(range(EXPERTS), key=row.__getitem__) for row in probs.tolist()]
    expected = probs.max(-1, keepdim=True).values if gradient == "scale" else torch.ones(TOKENS, 1).double()
    torch.testing.assert_close(routing.gates, expected)


def test_a_straight_through_gate_is_exactly_one() -> None:
    assert make_router("straight_through")(make_input()).gates.eq(1).all()


@pytest.mark.parametrize("gradient", ["scale", "straight_through"])
def test_the_router_gets_the_gradient_of_the_chosen_probability(gradient: str) -> None:
    router, x = make_router(gradient), make_input()
    weight = router.gate.layers[0].weight
    weights = torch.linspace(-1, 1, TOKENS, dtype=torch.float64).unsqueeze(-1)
    (router(x).gates * weights).sum().backward()
    probs = torch.softmax(x @ weight.T, -1)
    expected = torch.autograd.grad((probs.max(-1, keepdim=True).values * weights).sum(), weight)[0]
    torch.testing.assert_close(weight.grad, expected)
    assert weight.grad.abs().sum() > 0


def test_without_gradient_the_gates_train_nothing_but_the_logits_can_be_supervised() -> None:
    router, x = make_router("none"), make_input()
    assert not router(x).gates.requires_grad
    target = torch.arange(TOKENS) % EXPERTS
    optimizer = torch.optim.Adam(router.parameters(), lr=0.3)
    for _ in range(200):
        optimizer.zero_grad()
        F.cross_entropy(router(x).logits, target).backward()
        optimizer.step()
    first_half = router(x[:4]).expert_ids.flatten()
    assert first_half.tolist() == target[:4].tolist()


def test_ties_go_to_the_lowest_id() -> None:
    router = HardRouter(DIM, EXPERTS, init_scale=0.0)
    assert router(torch.randn(5, DIM)).expert_ids.eq(0).all()


@pytest.mark.parametrize("gradient", ["scale", "straight_through", "none"])
def test_non_finite_tokens_are_marked(gradient: str) -> None:
    x = make_input()
    x[2, 0] = math.nan
    routing = make_router(gradient)(x)
    assert routing.valid.logical_not().nonzero().flatten().tolist() == [2]
    assert routing.gates[2].isnan().all()
    assert routing.gates[routing.valid].isfinite().all()
    assert routing.probs[2].eq(0).all()


def test_gradcheck() -> None:
    router = make_router("scale", gate_hidden_dim=3, gate_bias=True)
    names = [name for name, _ in router.named_parameters()]

    def call(x: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(router, dict(zip(names, values, strict=True)), (x,)).gates

    assert torch.autograd.gradcheck(call, (make_input().requires_grad_(), *router.parameters()))


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="gradient must be one of 'scale', 'straight_through', 'none', got 'ste'"):
        HardRouter(DIM, EXPERTS, gradient="ste")
    with pytest.raises(ValueError, match="num_experts must be at least 1, got 0"):
        HardRouter(DIM, 0)
    with pytest.raises(ValueError, match=r"x unless given\) must have a last dimension of 6, got shape \(2, 3\)"):
        make_router()(torch.zeros(2, 3))
