"""A token that is not finite changes its own output alone."""

import pytest
import torch
from torch import nn

from moekit import ExpertChoiceRouter, FFNExperts, HardRouter, ModuleExperts, SoftMoE, SparseMoE, TopKRouter

DIM, EXPERTS, TOKENS, BAD = 4, 5, 10, 3
OTHERS = torch.arange(TOKENS) != BAD
bad_values = pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])


def _ffn(impl="torch"):
    return FFNExperts(DIM, 6, EXPERTS, impl=impl, dtype=torch.float64)


def _modules():
    return ModuleExperts([nn.Linear(DIM, DIM, dtype=torch.float64) for _ in range(EXPERTS)])


def _top_k(**options):
    return TopKRouter(DIM, EXPERTS, 2, dtype=torch.float64, **options)


LAYERS = {
    "reference": lambda: SparseMoE(_top_k(), _ffn("reference")),
    "torch": lambda: SparseMoE(_top_k(), _ffn()),
    "function": lambda: SparseMoE(_top_k(), FFNExperts(DIM, 6, EXPERTS, activation=torch.tanh, dtype=torch.float64)),
    "modules": lambda: SparseMoE(_top_k(), _modules()),
    "sigmoid": lambda: SparseMoE(_top_k(scoring="sigmoid", selection_bias=True), _ffn()),
    "groups": lambda: SparseMoE(TopKRouter(DIM, EXPERTS, 1, num_groups=5, topk_groups=2, dtype=torch.float64), _ffn()),
    "noisy": lambda: SparseMoE(_top_k(noisy=True).eval(), _ffn()),
    "hard": lambda: SparseMoE(HardRouter(DIM, EXPERTS, gradient="straight_through", dtype=torch.float64), _ffn()),
    # With 10 tokens and with 9, ceil(1.0 * T * 2 / 5) is 4, so the bad token changes no capacity.
    "capacity": lambda: SparseMoE(_top_k(), _ffn(), capacity_factor=1.0),
    "capacity by gate": lambda: SparseMoE(_top_k(), _ffn(), capacity_factor=1.0, drop_policy="gate"),
}
layers = pytest.mark.parametrize("name", LAYERS)


def _inputs(value):
    x = torch.randn(TOKENS, DIM, dtype=torch.float64)
    broken = x.clone()
    broken[BAD, 1] = value
    return x, broken


@layers
@bad_values
def test_other_tokens_are_as_if_it_were_not_there(name, value):
    moe = LAYERS[name]()
    x, broken = _inputs(value)
    output, stats = moe(broken)
    absent, absent_stats = moe(x, mask=OTHERS)
    assert output[BAD].isnan().all()
    assert torch.equal(output[OTHERS], absent[OTHERS])
    assert stats.nonfinite_tokens == 1
    assert stats.num_tokens == TOKENS - 1
    for field in ("tokens_per_expert", "dropped_per_expert", "prob_sum", "gate_sum", "load", "entropy_sum"):
        assert torch.equal(getattr(stats, field), getattr(absent_stats, field)), field


@pytest.mark.parametrize("name", ["reference", "modules", "function", "torch"])
@bad_values
def test_other_tokens_are_those_of_a_clean_run(name, value):
    moe = LAYERS[name]()
    x, broken = _inputs(value)
    beside, clean = moe(broken).output[OTHERS], moe(x).output[OTHERS]
    if name == "reference":  # whose products have the same shape in both runs
        assert torch.equal(beside, clean)
    # Elsewhere an expert's GEMM has a row less, which may round its other rows differently.
    torch.testing.assert_close(beside, clean, rtol=1e-14, atol=1e-15)


@layers
@bad_values
def test_ids_are_in_range_and_gates_are_nan(name, value):
    moe = LAYERS[name]()
    routing = moe.route(_inputs(value)[1])
    assert routing.expert_ids.min() >= 0
    assert routing.expert_ids.max() < EXPERTS
    assert routing.gates[BAD].isnan().all()
    assert routing.gates[OTHERS].isfinite().all()
    assert not routing.valid[BAD]
    assert not routing.probs[BAD].any()


@layers
def test_gradients_of_the_experts_stay_finite(name):
    moe = LAYERS[name]()
    broken = _inputs(torch.nan)[1].requires_grad_()
    moe(broken).output[OTHERS].square().sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in moe.experts.parameters())
    assert broken.grad[OTHERS].isfinite().all()


@layers
def test_all_tokens_bad(name):
    moe = LAYERS[name]()
    output, stats = moe(torch.full((3, DIM), torch.nan, dtype=torch.float64))
    assert output.isnan().all()
    assert not stats.tokens_per_expert.any()
    assert stats.nonfinite_tokens == 3
    assert all(field.isfinite().all() for field in stats)


@bad_values
@pytest.mark.parametrize("impl", ["reference", "torch", "modules"])
def test_expert_choice_never_takes_it(impl, value):
    experts = _modules() if impl == "modules" else _ffn(impl)
    moe = SparseMoE(ExpertChoiceRouter(DIM, EXPERTS, capacity_factor=EXPERTS, dtype=torch.float64), experts)
    x, broken = _inputs(value)
    routing = moe.route(broken)
    output, stats = moe(broken)
    absent = moe(x, mask=OTHERS).output
    assert not (routing.kept & (routing.token_ids == BAD)).any()
    assert routing.kept.sum() == EXPERTS * (TOKENS - 1)
    assert not output[BAD].any()
    assert torch.equal(output[OTHERS], absent[OTHERS])
    assert stats.nonfinite_tokens == 1


@bad_values
@pytest.mark.parametrize("normalize", [True, False])
def test_soft_moe_mixes_the_others_as_if_it_were_masked(normalize, value):
    moe = SoftMoE(DIM, _ffn(), slots_per_expert=2, normalize=normalize, dtype=torch.float64)
    x, broken = (t.view(2, TOKENS // 2, DIM) for t in _inputs(value))
    others = OTHERS.view(2, -1)
    output, stats = moe(broken)
    absent = moe(x, mask=others).output
    assert output[~others].isnan().all()
    assert torch.equal(output[others], absent[others])
    assert not absent[~others].any()
    assert (stats.nonfinite_tokens, stats.num_tokens) == (1, TOKENS - 1)


def test_soft_moe_ignores_what_padding_holds():
    moe = SoftMoE(DIM, _ffn(), dtype=torch.float64)
    x = torch.randn(1, TOKENS, DIM, dtype=torch.float64)
    results = []
    for filler in (0.0, 7.0, torch.nan):
        filled = x.clone()
        filled[:, BAD] = filler
        filled.requires_grad_()
        moe.zero_grad()
        output = moe(filled, mask=OTHERS[None]).output
        output.square().sum().backward()
        results.append([output, filled.grad, *(p.grad for p in moe.parameters())])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
