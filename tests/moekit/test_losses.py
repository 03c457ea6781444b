"""Auxiliary losses: their values at balance and collapse, their formulas, their gradients."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from moekit import (
    HardRouter,
    Router,
    RouterStats,
    SparseMoE,
    TopKRouter,
    importance_loss,
    load_balancing_loss,
    load_loss,
    mutual_information_loss,
    plan_dispatch,
    router_entropy,
    router_stats,
    router_z_loss,
)

DIM, EXPERTS, TOKENS = 6, 4, 24
OF_STATS = (
    load_balancing_loss,
    importance_loss,
    load_loss,
    router_z_loss,
    router_entropy,
    mutual_information_loss,
)


def stats_of_logits(logits: Tensor, top_k: int = 1) -> RouterStats:
    """Statistics of a softmax router with these logits."""
    router = TopKRouter(1, logits.shape[-1], top_k, gate=nn.Identity())
    routing = router(logits)
    return router_stats(routing, plan_dispatch(routing.expert_ids, logits.shape[-1]))


def even_stats() -> RouterStats:
    """Balance: undecided tokens, equally many per expert."""
    probs = torch.full((TOKENS, EXPERTS), 1 / EXPERTS, dtype=torch.float64)
    stats = stats_of_logits(probs.log())
    counts = torch.full((EXPERTS,), TOKENS // EXPERTS)
    even = counts.double() / EXPERTS
    return stats._replace(tokens_per_expert=counts, gate_sum=even, load=counts.double())


def logits_of(choices: Tensor) -> Tensor:
    """Logits of tokens that are certain of their choice."""
    return torch.where(torch.arange(EXPERTS) == choices.unsqueeze(-1), 0.0, -1000.0).double()


def random_logits(scale: float = 1.0, shift: float = 0.0) -> Tensor:
    torch.manual_seed(0)
    logits = torch.randn(TOKENS, EXPERTS, dtype=torch.float64) * scale
    logits[:, 0] += shift
    return logits


COLLAPSED = logits_of(torch.zeros(TOKENS, dtype=torch.int64))
CERTAIN_AND_EVEN = logits_of(torch.arange(TOKENS) % EXPERTS)


@pytest.mark.parametrize(
    ("loss", "balance", "collapse"),
    [
        (load_balancing_loss, 1.0, EXPERTS),
        (importance_loss, 0.0, EXPERTS - 1),
        (load_loss, 0.0, EXPERTS - 1),
        (router_entropy, math.log(EXPERTS), 0.0),
        (mutual_information_loss, 0.0, 0.0),
    ],
)
def test_values_at_balance_and_collapse(loss: Callable, balance: float, collapse: float) -> None:
    assert loss(even_stats()).item() == pytest.approx(balance, abs=1e-12)
    assert loss(stats_of_logits(COLLAPSED)).item() == pytest.approx(collapse, abs=1e-12)


def test_certain_tokens_that_use_all_experts_equally_maximise_mutual_information() -> None:
    stats = stats_of_logits(CERTAIN_AND_EVEN)
    assert mutual_information_loss(stats).item() == pytest.approx(-math.log(EXPERTS), abs=1e-12)
    assert mutual_information_loss(CERTAIN_AND_EVEN).item() == pytest.approx(-math.log(EXPERTS), abs=1e-12)
    assert router_entropy(stats).item() == pytest.approx(0, abs=1e-12)
    assert load_balancing_loss(stats).item() == pytest.approx(1.0)


def test_z_loss_of_zero_logits_is_the_squared_log_of_e() -> None:
    zeros = torch.zeros(TOKENS, EXPERTS, dtype=torch.float64)
    assert router_z_loss(zeros).item() == pytest.approx(math.log(EXPERTS) ** 2)
    assert router_z_loss(stats_of_logits(zeros)).item() == pytest.approx(math.log(EXPERTS) ** 2)


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_load_balancing_loss_is_the_switch_formula(top_k: int) -> None:
    logits = random_logits(2.0)
    stats = stats_of_logits(logits, top_k)
    probs = logits.softmax(-1)
    chosen = logits.topk(top_k, dim=-1).indices
    share = [chosen.eq(e).sum().item() / (TOKENS * top_k) for e in range(EXPERTS)]
    expected = EXPERTS * sum(share[e] * probs[:, e].mean().item() for e in range(EXPERTS))
    assert load_balancing_loss(stats).item() == pytest.approx(expected)


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_load_balancing_loss_times_k_is_that_of_transformers(top_k: int) -> None:
    mixtral = pytest.importorskip("transformers.models.mixtral.modeling_mixtral")
    logits = random_logits(2.0).float()
    theirs = mixtral.load_balancing_loss_func((logits,), EXPERTS, top_k)
    torch.testing.assert_close(load_balancing_loss(stats_of_logits(logits, top_k)) * top_k, theirs)


def test_load_balancing_loss_can_take_the_counts_of_the_global_batch() -> None:
    logits = random_logits()
    stats, earlier = stats_of_logits(logits), torch.tensor([100, 0, 0, 0])
    probs = logits.softmax(-1).mean(0)
    counts = stats.tokens_per_expert + earlier
    share = counts.double() / counts.sum()
    got = load_balancing_loss(stats, tokens_per_expert=counts)
    torch.testing.assert_close(got, EXPERTS * (share * probs).sum())
    assert got.item() != pytest.approx(load_balancing_loss(stats).item())


@pytest.mark.parametrize("of_stats", [False, True])
def test_z_loss_and_entropy_are_means_over_tokens(of_stats: bool) -> None:
    logits = random_logits(2.0)
    argument = stats_of_logits(logits) if of_stats else logits.view(2, TOKENS // 2, EXPERTS)
    torch.testing.assert_close(router_z_loss(argument), logits.exp().sum(-1).log().square().mean())
    expected = torch.distributions.Categorical(logits=logits).entropy().mean()
    torch.testing.assert_close(router_entropy(argument), expected)


def test_importance_loss_is_the_squared_coefficient_of_variation_of_the_gates() -> None:
    stats = stats_of_logits(random_logits(), top_k=2)
    gates = stats.gate_sum.numpy()
    assert importance_loss(stats).item() == pytest.approx((gates.std() / gates.mean()) ** 2)
    load = stats.tokens_per_expert.numpy()
    assert load_loss(stats).item() == pytest.approx((load.std() / load.mean()) ** 2)


def information(joint: np.ndarray) -> float:
    """Mutual information of a joint table in nats."""
    product = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    held = joint > 0
    return float((joint[held] * np.log(joint[held] / product[held])).sum())


def test_mutual_information_of_tokens_is_that_of_the_joint_table() -> None:
    logits = random_logits(2.0)
    expected = -information(logits.softmax(-1).numpy() / TOKENS)
    assert mutual_information_loss(stats_of_logits(logits)).item() == pytest.approx(expected)
    assert mutual_information_loss(logits.view(3, -1, EXPERTS)).item() == pytest.approx(expected)


def test_mutual_information_of_groups_is_that_of_the_joint_table_and_weighs_by_tokens() -> None:
    parts = random_logits(2.0).split([4, 15, 5])
    groups = [stats_of_logits(part) for part in parts]
    joint = np.stack([part.softmax(-1).sum(0).numpy() for part in parts]) / TOKENS
    assert mutual_information_loss(groups).item() == pytest.approx(-information(joint))
    empty = stats_of_logits(parts[0][:0])
    assert mutual_information_loss([*groups, empty]).item() == pytest.approx(-information(joint))
    assert mutual_information_loss(tuple(groups)).item() == pytest.approx(-information(joint))


def test_groups_that_use_different_experts_share_the_most_information() -> None:
    groups = [stats_of_logits(logits_of(torch.full((5,), e))) for e in range(EXPERTS)]
    assert mutual_information_loss(groups).item() == pytest.approx(-math.log(EXPERTS))


def test_no_groups_are_refused() -> None:
    with pytest.raises(ValueError, match="stats must hold the statistics of at least one group, got an empty seq"):
        mutual_information_loss([])


@pytest.mark.parametrize("loss", OF_STATS)
def test_no_tokens_give_a_finite_zero_and_a_finite_gradient(loss: Callable) -> None:
    logits = torch.zeros(0, EXPERTS, dtype=torch.float64, requires_grad=True)
    value = loss(stats_of_logits(logits))
    assert value.item() == 0
    if value.requires_grad:
        value.backward()
        assert logits.grad.isfinite().all()


@pytest.mark.parametrize("loss", [router_entropy, mutual_information_loss])
@pytest.mark.parametrize("of_stats", [False, True])
def test_gradients_stay_finite_where_probabilities_are_zero(loss: Callable, of_stats: bool) -> None:
    logits = CERTAIN_AND_EVEN.clone().requires_grad_()
    loss(stats_of_logits(logits) if of_stats else logits).backward()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("loss", [load_balancing_loss, importance_loss, *OF_STATS[3:]])
def test_gradients_of_logits_agree_with_finite_differences(loss: Callable) -> None:
    logits = random_logits()[:6].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda z: loss(stats_of_logits(z, 2)), (logits,))
    if loss in OF_STATS[3:]:
        assert torch.autograd.gradcheck(loss, (logits,))


def test_only_the_probabilities_of_the_load_balancing_loss_have_a_gradient() -> None:
    logits = random_logits().requires_grad_()
    stats = stats_of_logits(logits)
    load_balancing_loss(stats).backward()
    share = stats.tokens_per_expert / TOKENS
    probs = logits.detach().softmax(-1)
    expected = EXPERTS / TOKENS * probs * (share - (probs * share).sum(-1, keepdim=True))
    torch.testing.assert_close(logits.grad, expected)


def test_the_plain_count_has_no_gradient() -> None:
    assert not load_loss(stats_of_logits(random_logits().requires_grad_())).requires_grad


def descend(router: Router, loss: Callable, steps: int = 60) -> list[RouterStats]:
    """Statistics of one batch before each step down the loss."""
    torch.manual_seed(0)
    x = torch.randn(400, DIM)
    optimizer = torch.optim.SGD(router.parameters(), lr=0.5)
    history = []
    for _ in range(steps):
        routing = router(x)
        history.append(router_stats(routing, plan_dispatch(routing.expert_ids, EXPERTS)))
        optimizer.zero_grad()
        loss(history[-1]).backward()
        optimizer.step()
    return history


def make_imbalanced(router: Router) -> Router:
    with torch.no_grad():
        router.gate.layers[0].bias.copy_(torch.tensor([1.0, 0.0, 0.0, -1.0]))
    return router


def test_steps_down_the_load_balancing_loss_balance_a_router() -> None:
    torch.manual_seed(0)
    history = descend(make_imbalanced(HardRouter(DIM, EXPERTS, gate_bias=True)), load_balancing_loss)
    violations = [stats.tokens_per_expert.max().item() / 100 - 1 for stats in history]
    assert violations[0] > 1
    assert violations[-1] < violations[0] / 3


def test_steps_down_the_importance_loss_even_the_sums_of_gates() -> None:
    torch.manual_seed(0)
    history = descend(make_imbalanced(TopKRouter(DIM, EXPERTS, EXPERTS, gate_bias=True)), importance_loss)
    shares = [stats.gate_sum.detach() / 400 for stats in history]
    assert shares[0].max() > 0.4
    assert shares[0].min() < 0.1
    assert (shares[-1] - 0.25).abs().max() < 0.05


def test_a_step_down_the_z_loss_makes_logits_smaller() -> None:
    logits = random_logits(5.0, shift=3.0).requires_grad_()
    router_z_loss(logits).backward()
    after = logits.detach() - 10.0 * logits.grad
    assert router_z_loss(after) < router_z_loss(logits)


def test_counts_of_another_number_of_experts_are_refused() -> None:
    stats = SparseMoE.ffn(4, 4, 3, 1)(torch.randn(5, 4)).stats
    with pytest.raises(ValueError, match=r"tokens_per_expert must be a tensor of shape \(3,\), got shape \(4,\)"):
        load_balancing_loss(stats, tokens_per_expert=torch.ones(4))
    with pytest.raises(ValueError, match=r"tokens_per_expert must be a tensor of shape \(3,\), got a list: pass stats"):
        load_balancing_loss(stats, tokens_per_expert=[1, 2, 3])


def test_losses_of_no_logits_are_zero() -> None:
    empty = torch.zeros(0, 4)
    assert router_z_loss(empty) == 0
    assert router_entropy(empty) == 0
    assert mutual_information_loss(empty) == 0
    assert mutual_information_loss(torch.zeros(4)).abs() < 1e-6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("loss", "balanced"),
    [(router_z_loss, math.log(8) ** 2), (router_entropy, math.log(8)), (mutual_information_loss, 0.0)],
)
def test_half_precision_logits_of_many_tokens_do_not_overflow(loss: Callable, balanced: float, dtype) -> None:
    logits = torch.zeros(40_000, 8, dtype=dtype, requires_grad=True)
    value = loss(logits)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(balanced, abs=1e-4)
    value.backward()
    assert logits.grad.isfinite().all()


def test_the_z_loss_of_large_half_precision_logits_is_finite() -> None:
    assert router_z_loss(torch.full((4, 8), 300.0, dtype=torch.float16)).item() == pytest.approx(91_251.97, rel=1e-5)


def test_half_precision_statistics_give_the_loss_in_float32() -> None:
    wide = stats_of_logits(random_logits().float(), top_k=2)
    half = RouterStats(*(field.half() if field.is_floating_point() else field for field in wide))
    for loss in OF_STATS:
        assert loss(half).dtype == torch.float32
        torch.testing.assert_close(loss(half), loss(wide), rtol=5e-3, atol=5e-3)
    # 30,000 tokens on one of 4 experts: the square of the mean overflows in float16.
    skewed = half._replace(gate_sum=torch.tensor([30_000, 0, 0, 0], dtype=torch.float16))
    assert importance_loss(skewed).item() == pytest.approx(3.0)


@pytest.mark.parametrize("loss", OF_STATS)
def test_what_is_no_statistics_is_refused_with_what_to_pass(loss: Callable) -> None:
    moe = SparseMoE.ffn(4, 4, 3, 1)
    with pytest.raises(ValueError, match=r"stats must be RouterStats.*, got None: the layer was called with stats=Fal"):
        loss(moe(torch.randn(5, 4), stats=False).stats)
    with pytest.raises(ValueError, match=r"stats must be RouterStats.*, got a MoEOutput: pass its \.stats"):
        loss(moe(torch.randn(5, 4)))
    with pytest.raises(ValueError, match=r"stats must be RouterStats.*, got a float: pass the \.stats of"):
        loss(0.5)


def test_groups_and_logits_that_are_none_are_refused() -> None:
    stats = stats_of_logits(random_logits())
    with pytest.raises(ValueError, match=r"stats\[1\] must be RouterStats, got None"):
        mutual_information_loss([stats, None])
    with pytest.raises(ValueError, match=r"stats must be of a floating dtype, got torch\.int64"):
        router_z_loss(torch.zeros(3, 4, dtype=torch.int64))
