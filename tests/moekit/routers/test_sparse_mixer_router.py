"""The sparse mixer: choices, gates and gradients in evaluation and training."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from moekit import FFNExperts, SparseMixerRouter, SparseMoE
from moekit.routing import Routing
from tests.oracles import assert_close
from tests.strategies import few


def of_logits(num_experts: int, top_k: int = 2, *, epsilon: float = 0.5, training: bool = False) -> SparseMixerRouter:
    """A router whose input are the logits."""
    router = SparseMixerRouter(1, num_experts, top_k, epsilon=epsilon, gate=nn.Identity())
    return router.train(training)


def seeded(router: nn.Module, logits: Tensor, seed: int = 3) -> Routing:
    torch.manual_seed(seed)
    return router(logits)


@few
@given(
    tokens=st.integers(1, 40),
    experts=st.integers(2, 9),
    epsilon=st.sampled_from([0.0, 0.01, 0.5, 3.0]),
    training=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_choices_gates_and_gradients_are_those_of_transformers_phimoe(tokens, experts, epsilon, training, seed) -> None:
    modeling = pytest.importorskip("transformers.models.phimoe.modeling_phimoe")
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(tokens, experts, generator=generator, dtype=torch.float64)
    weight = torch.randn(tokens, 2, generator=generator, dtype=torch.float64)
    mine, theirs = (logits.clone().requires_grad_() for _ in range(2))
    routing = seeded(of_logits(experts, epsilon=epsilon, training=training), mine, seed)
    torch.manual_seed(seed)
    gates, ids = modeling.sparsemixer(theirs, jitter_eps=epsilon, training=training)
    assert torch.equal(routing.expert_ids, ids)
    torch.testing.assert_close(routing.gates, gates, rtol=1e-7, atol=0)  # their factor is rounded to float32
    for value, leaf in ((routing.gates, mine), (gates, theirs)):
        (value * weight).sum().backward()
        assert leaf.grad is not None
    assert_close(mine.grad, theirs.grad)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("experts", "top_k"), [(5, 1), (5, 3), (4, 4)])
def test_any_number_of_experts_per_token(experts: int, top_k: int, training: bool) -> None:
    logits = torch.randn(60, experts, dtype=torch.float64)
    routing = seeded(of_logits(experts, top_k, training=training), logits)
    assert all(len(set(row)) == top_k for row in routing.expert_ids.tolist())
    for token, row in enumerate(logits.tolist()):
        left = dict(enumerate(row))
        for place, (expert, gate) in enumerate(
            zip(routing.expert_ids[token].tolist(), routing.gates[token].tolist(), strict=True)
        ):
            best = max(left.values())
            near = {e: v for e, v in left.items() if (best - v) / max(abs(v), best) <= 1.0}
            p = torch.tensor([near[e] for e in near], dtype=torch.float64).softmax(0)[list(near).index(expert)].item()
            shares = [1.0] if left[expert] == best or not training else [1.0, 0.3333]
            assert any(gate == pytest.approx(p * share) for share in shares), place
            assert training or left[expert] == best
            del left[expert]


def test_training_draws_experts_by_their_probabilities() -> None:
    logits = torch.tensor([[1.0, 0.5, 0.2, -4.0]]).expand(20_000, 4)
    routing = seeded(of_logits(4, 1, training=True), logits)
    drawn = routing.expert_ids.flatten().bincount(minlength=4) / 20_000
    candidates = torch.tensor([1.0, 0.5, 0.2]).softmax(0)  # the last one is too far from the best
    torch.testing.assert_close(drawn, torch.cat([candidates, torch.zeros(1)]), rtol=0, atol=0.02)
    whole = routing.gates.flatten() > candidates[routing.expert_ids.flatten()] * 0.9
    assert whole[routing.expert_ids.flatten() == 0].all()
    share = whole[routing.expert_ids.flatten() != 0].float().mean().item()
    assert share == pytest.approx(0.25, abs=0.02)


@pytest.mark.parametrize("training", [True, False])
def test_the_gradient_of_a_gate_is_that_of_its_probability(training: bool) -> None:
    logits = torch.randn(30, 5, dtype=torch.float64, requires_grad=True)
    router = of_logits(5, 1, epsilon=50.0, training=training)  # every expert of a positive logit is a candidate
    routing = seeded(router, logits)
    best = logits.max(-1, keepdim=True).values
    far = (best - logits) / logits.abs().clamp(min=best) > 100
    probs = logits.masked_fill(far, -torch.inf).softmax(-1).gather(-1, routing.expert_ids)
    weight = torch.randn_like(probs)
    (actual,) = torch.autograd.grad((routing.gates * weight).sum(), logits)
    (expected,) = torch.autograd.grad((probs * weight).sum(), logits)
    assert_close(actual, expected)


def test_gradients_pass_gradcheck_in_evaluation() -> None:
    logits = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    router = of_logits(5)
    assert torch.autograd.gradgradcheck(lambda x: (router(x).gates, router(x).probs), (logits,))


def test_without_a_margin_evaluation_is_top_k_with_gates_of_one() -> None:
    logits = torch.randn(50, 6)
    routing = of_logits(6, 3, epsilon=0.0)(logits)
    assert torch.equal(routing.expert_ids, logits.topk(3).indices)
    assert routing.gates.eq(1).all()


@pytest.mark.parametrize("training", [True, False])
def test_tokens_that_are_not_finite_are_marked_and_others_stay(training: bool) -> None:
    logits = torch.randn(8, 4)
    router = of_logits(4, training=training)
    expected = seeded(router, logits)
    broken = logits.clone()
    broken[2, 1] = torch.inf
    routing = seeded(router, broken)
    assert routing.valid.tolist() == [token != 2 for token in range(8)]
    assert routing.gates[2].isnan().all()
    assert routing.probs[2].eq(0).all()
    rest = routing.valid
    assert torch.equal(routing.expert_ids[rest], expected.expert_ids[rest])
    assert torch.equal(routing.gates[rest], expected.gates[rest])


def test_it_trains_in_a_layer_and_jitters_in_training_alone() -> None:
    torch.manual_seed(0)
    layer = SparseMoE(SparseMixerRouter(8, 4, epsilon=1.0, jitter=0.5), FFNExperts(8, 5, 4))
    x = torch.randn(3, 7, 8)
    output, stats = layer(x)
    assert stats.tokens_per_expert.sum() == 3 * 7 * 2
    output.square().sum().backward()
    assert layer.router.gate.layers[0].weight.grad.abs().sum() > 0
    assert not torch.equal(layer.route(x).logits, layer.route(x).logits)
    layer.eval()
    assert torch.equal(layer.route(x).logits, layer.route(x).logits)
    assert torch.equal(layer.route(x).gates, layer.route(x).gates)


@pytest.mark.parametrize("training", [True, False])
def test_compiled_without_a_break(training: bool) -> None:
    router = SparseMixerRouter(8, 4, epsilon=1.0).train(training)
    x = torch.randn(6, 8)
    compiled = torch.compile(router, backend="aot_eager", fullgraph=True)
    torch.manual_seed(1)
    actual = compiled(x)
    torch.manual_seed(1)
    expected = router(x)
    torch.testing.assert_close(actual.gates, expected.gates)
    assert torch.equal(actual.expert_ids, expected.expert_ids)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 5}, "top_k must be between 1 and num_experts=4, got 5"),
        ({"epsilon": -0.1}, r"epsilon must be at least 0, got -0\.1"),
        ({"epsilon": float("nan")}, "epsilon must be at least 0, got nan"),
        ({"jitter": 1.0}, r"jitter must be in \[0, 1\), got 1\.0"),
        ({"gate": nn.Identity(), "gate_bias": True}, "gate_hidden_dim and gate_bias describe the built-in gate"),
    ],
)
def test_bad_options_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SparseMixerRouter(8, 4, **options)
