"""What a top-k router does in training only: jitter, noise, and balancing by its selection bias."""

import pytest
import torch
from torch import Tensor, nn

from moekit import (
    ExpertChoiceRouter,
    HardRouter,
    HashRouter,
    RouterStats,
    TopKRouter,
    load_loss,
    plan_dispatch,
    router_stats,
)
from moekit.routers.gate import Gate

DIM, EXPERTS = 6, 8


def make_input(tokens: int = 32, dtype: torch.dtype = torch.float32, seed: int = 1) -> Tensor:
    return torch.randn(tokens, DIM, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def make_router(top_k: int = 2, **options) -> TopKRouter:
    torch.manual_seed(0)
    router = TopKRouter(DIM, EXPERTS, top_k, **options)
    for parameter in router.parameters():
        nn.init.normal_(parameter)
    return router


def stats_of(router: TopKRouter, x: Tensor) -> RouterStats:
    routing = router(x)
    return router_stats(routing, plan_dispatch(routing.expert_ids, EXPERTS, kept=routing.valid.unsqueeze(-1)))


class Recorder(nn.Module):
    """A gate that keeps its last input."""

    def forward(self, x: Tensor) -> Tensor:
        self.seen = x
        return x


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_jitter_multiplies_the_input_by_uniform_noise_in_training_only(dtype: torch.dtype) -> None:
    gate = Recorder()
    router = TopKRouter(4, 4, 1, jitter=0.1, gate=gate)
    x = torch.ones(20_000, 4, dtype=dtype)
    torch.manual_seed(0)
    router(x)
    factor = gate.seen.double()
    rounding = torch.finfo(dtype).eps
    assert factor.min() >= 0.9 - rounding
    assert factor.max() <= 1.1 + rounding
    bound = 4 * 0.1 / 3**0.5 / factor.numel() ** 0.5  # four standard errors of the mean
    assert factor.mean().item() == pytest.approx(1.0, abs=bound)
    assert factor.std().item() == pytest.approx(0.1 / 3**0.5, rel=0.01)
    assert gate.seen.dtype == dtype
    router.eval()(x)
    assert gate.seen.eq(1).all()


def test_jitter_of_ids_is_refused() -> None:
    """Ids times noise would be other ids."""
    router = TopKRouter(4, 4, 1, jitter=0.1, gate=nn.Embedding(9, 4))
    with pytest.raises(ValueError, match=r"under jitter must be of a floating dtype, got torch\.int64"):
        router(torch.arange(9))
    assert router.eval()(torch.arange(9)).expert_ids.shape == (9, 1)


def test_noise_changes_choices_in_training_only() -> None:
    router, x = make_router(noisy=True), make_input()
    first, second = router(x), router(x)
    assert not first.expert_ids.equal(second.expert_ids)
    assert first.logits.equal(second.logits)
    torch.testing.assert_close(first.logits, x @ router.gate.layers[0].weight.T)
    assert first.load_probs.shape == (32, EXPERTS)
    router.eval()
    first, second = router(x), router(x)
    assert first.gates.equal(second.gates)
    assert first.load_probs is None


def test_noisy_gates_start_from_zero_so_all_experts_are_equally_likely() -> None:
    torch.manual_seed(0)
    router = TopKRouter(DIM, EXPERTS, 2, noisy=True, scoring="topk_softmax")
    assert isinstance(router.noise_gate, Gate)
    assert router.gate.layers[0].weight.eq(0).all()
    assert router.noise_gate.layers[0].weight.eq(0).all()
    load = stats_of(router, make_input(8000)).load
    torch.testing.assert_close(load / 8000, torch.full_like(load, 2 / EXPERTS), rtol=0.1, atol=0)


def test_a_hidden_layer_before_noisy_logits_does_not_start_dead() -> None:
    router = TopKRouter(DIM, EXPERTS, 2, noisy=True, gate_hidden_dim=4)
    assert all(layer.weight.ne(0).any() for layer in router.gate.layers)


def test_load_is_the_sum_over_tokens_of_equation_10_and_has_a_gradient() -> None:
    router, x = make_router(noisy=True), make_input()
    torch.manual_seed(3)
    load_probs = router(x).load_probs
    torch.manual_seed(3)
    stats = stats_of(router, x)
    torch.testing.assert_close(stats.load, load_probs.sum(0))
    load_loss(stats).backward()
    assert router.gate.layers[0].weight.grad.abs().sum() > 0
    assert router.noise_gate.layers[0].weight.grad.abs().sum() > 0


def test_following_the_load_loss_evens_the_load() -> None:
    router, x = make_router(1, noisy=True), make_input(256)
    optimizer = torch.optim.SGD(router.parameters(), lr=0.5)
    torch.manual_seed(0)
    before = load_loss(stats_of(router, x)).item()
    for _ in range(100):
        optimizer.zero_grad()
        load_loss(stats_of(router, x)).backward()
        optimizer.step()
    assert load_loss(stats_of(router, x)).item() < before / 4


def test_the_selection_bias_moves_choices_but_not_gates() -> None:
    router, x = make_router(scoring="sigmoid", renormalize=False, selection_bias=True), make_input()
    plain = router(x)
    router.selection_bias[5] = 10.0
    biased = router(x)
    assert biased.expert_ids[:, 0].eq(5).all()
    assert not plain.expert_ids[:, 0].eq(5).all()
    torch.testing.assert_close(biased.gates, biased.logits.sigmoid().gather(-1, biased.expert_ids))
    assert biased.probs.equal(plain.probs)


def test_update_bias_raises_underloaded_and_lowers_overloaded_experts() -> None:
    router = TopKRouter(DIM, 4, 2, selection_bias=True)
    router.update_bias_(torch.tensor([10, 2, 4, 0]), rate=0.5)
    assert router.selection_bias.tolist() == [-0.5, 0.5, 0.0, 0.5]
    router.update_bias_(torch.tensor([1, 1, 1, 5]))
    torch.testing.assert_close(router.selection_bias, torch.tensor([-0.499, 0.501, 0.001, 0.499]))
    router.reset_parameters()
    assert router.selection_bias.eq(0).all()


def imbalance(counts: Tensor) -> float:
    """Largest load over mean load, minus one (*MaxVio* of Wang et al. 2024)."""
    return (counts.max() / counts.double().mean()).item() - 1


def test_updating_the_bias_balances_an_imbalanced_router() -> None:
    router = make_router(scoring="sigmoid", selection_bias=True, gate_bias=True).eval()
    fresh = make_input(8192, seed=99)
    before = imbalance(stats_of(router, fresh).tokens_per_expert)
    weights = [parameter.clone() for parameter in router.parameters()]
    for step in range(200):
        router.update_bias_(stats_of(router, make_input(1024, seed=step)).tokens_per_expert, rate=5e-3)
    assert before > 0.5
    assert imbalance(stats_of(router, fresh).tokens_per_expert) < 0.1
    assert all(old.equal(new) for old, new in zip(weights, router.parameters(), strict=True))


def test_update_bias_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="update_bias_ needs a router built with selection_bias=True"):
        make_router().update_bias_(torch.ones(EXPERTS))
    with pytest.raises(ValueError, match=r"tokens_per_expert must be a tensor of shape \(8,\), got shape \(7,\)"):
        make_router(selection_bias=True).update_bias_(torch.ones(7))
    router = make_router(selection_bias=True)
    with pytest.raises(ValueError, match=r"of shape \(8,\), got a RouterStats: pass stats.tokens_per_expert"):
        router.update_bias_(stats_of(router, make_input()))
    for router in (HardRouter(DIM, EXPERTS), ExpertChoiceRouter(DIM, EXPERTS), HashRouter(EXPERTS, 10)):
        with pytest.raises(
            ValueError,
            match=f"update_bias_ needs a router with a selection bias, got a {type(router).__name__}: use TopKRouter",
        ):
            router.update_bias_(torch.ones(EXPERTS))


@pytest.mark.parametrize("change", ["half", "to", "assign", "double"])
def test_the_selection_bias_stays_float32_whatever_happens_to_the_weights(change: str) -> None:
    router = make_router(scoring="sigmoid", selection_bias=True)
    router.update_bias_(torch.arange(EXPERTS))
    before = router.selection_bias.clone()
    if change == "half":
        router.half()
    elif change == "to":
        router.to(torch.bfloat16)
    elif change == "double":
        router.double()
    else:
        state = {name: value.bfloat16() for name, value in router.state_dict().items()}
        router = make_router(scoring="sigmoid", selection_bias=True, device="meta")
        router.load_state_dict(state, assign=True)
        before = before.bfloat16().float()
    assert router.selection_bias.dtype == torch.float32
    assert torch.equal(router.selection_bias, before)
    for _ in range(8):  # steps that bfloat16 would swallow
        router.update_bias_(torch.arange(EXPERTS), rate=1e-6)
    assert torch.allclose(router.selection_bias - before, (3.5 - torch.arange(EXPERTS)).sign() * 8e-6, atol=1e-7)
    assert "selection_bias" in router.state_dict()


def test_a_half_precision_bias_in_place_of_the_buffer_selects_as_in_float32() -> None:
    router, x = make_router(scoring="sigmoid", selection_bias=True), make_input()
    router.update_bias_(torch.arange(EXPERTS), rate=0.25)  # exact in bfloat16
    expected = router(x)
    half = {"selection_bias": router.selection_bias.bfloat16()}
    routing = torch.func.functional_call(router, half, (x,))
    assert torch.equal(routing.expert_ids, expected.expert_ids)
    assert torch.equal(routing.gates, expected.gates)


@pytest.mark.parametrize("default", [torch.bfloat16, torch.float64])
def test_numbers_of_a_router_do_not_follow_the_default_dtype(default: torch.dtype) -> None:
    before = torch.get_default_dtype()
    torch.set_default_dtype(default)
    try:
        router = TopKRouter(DIM, EXPERTS, 2, selection_bias=True, scoring="sigmoid", dtype=torch.float32)
        routing = router(torch.randn(5, DIM, dtype=torch.float32))
    finally:
        torch.set_default_dtype(before)
    assert router.selection_bias.dtype == routing.gates.dtype == routing.probs.dtype == torch.float32


def test_half_precision_logits_of_a_gate_are_routed_in_float32() -> None:
    for router in (
        TopKRouter(DIM, EXPERTS, 2, gate=nn.Linear(DIM, EXPERTS).bfloat16()),
        HardRouter(DIM, EXPERTS),
        ExpertChoiceRouter(DIM, EXPERTS),
    ):
        router.gate = nn.Linear(DIM, EXPERTS).bfloat16()
        routing = router(make_input(dtype=torch.bfloat16))
        assert routing.gates.dtype == routing.probs.dtype == routing.logits.dtype == torch.float32
