"""Experts that are any modules."""

import pytest
import torch
from hypothesis import given
from torch import nn

from moekit import ModuleExperts, SparseMoE, TopKRouter, ZeroExpert, plan_dispatch, plan_expert_choice
from tests.oracles import assert_close, naive_experts
from tests.strategies import few, routed

IDS = torch.tensor([[0, 2], [2, 0], [0, 2]])  # expert 1 gets none


class Counting(nn.Module):
    """Records the number of rows of each call."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4, dtype=torch.float64)
        self.calls: list[int] = []

    def forward(self, x):
        self.calls.append(x.shape[0])
        return self.linear(x)


def _mixed():
    return [
        nn.Linear(4, 4, dtype=torch.float64),
        nn.Identity(),
        ZeroExpert(),
        nn.Sequential(nn.Linear(4, 9), nn.GELU(), nn.Linear(9, 4)).double(),
        nn.LayerNorm(4, dtype=torch.float64),
        nn.Linear(4, 4, bias=False, dtype=torch.float64),
        nn.Tanh(),
    ]


@few
@given(routed())
def test_different_modules_are_the_loop_over_tokens(case):
    torch.manual_seed(case.seed)
    modules = _mixed()[: case.num_experts]
    tokens, top_k = case.expert_ids.shape
    x = torch.randn(tokens, 4, dtype=torch.float64)
    gates = torch.randn(tokens, top_k, dtype=torch.float64)
    plan = plan_dispatch(case.expert_ids, case.num_experts, kept=case.kept)
    out = ModuleExperts(modules)(x, plan, gates)

    def one(e, token):
        return modules[e](token.unsqueeze(0))[0]

    assert_close(out, naive_experts(x, gates, case.expert_ids, case.kept, one, 4))


def test_experts_over_samples_and_another_output_shape():
    convolutions = [nn.Conv2d(2, 3, kernel, padding=kernel // 2) for kernel in (1, 3, 5)]
    x, gates = torch.randn(3, 2, 6, 6), torch.rand(3, 2)
    out = ModuleExperts(convolutions, token_ndim=3)(x, plan_dispatch(IDS, 3), gates)
    for t in range(3):
        expected = sum(gates[t, k] * convolutions[IDS[t, k]](x[t : t + 1])[0] for k in range(2))
        assert_close(out[t], expected)


def test_each_expert_runs_once_on_its_own_rows_and_not_without_any():
    modules = [Counting() for _ in range(3)]
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    out = ModuleExperts(modules)(x, plan_dispatch(IDS, 3), torch.ones(3, 2, dtype=torch.float64))
    out.sum().backward()
    assert [m.calls for m in modules] == [[3], [], [3]]
    assert modules[1].linear.weight.grad is None
    assert modules[0].linear.weight.grad.any()
    assert x.grad.any()


def test_gradients():
    experts = ModuleExperts(_mixed())
    ids = torch.tensor([[0, 2, 3], [4, 1, 6], [5, 0, 2]])
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    gates = torch.rand(3, 3, dtype=torch.float64, requires_grad=True)
    plan = plan_dispatch(ids, 7, kept=torch.tensor([[True], [True], [True]]).expand(3, 3))
    assert torch.autograd.gradcheck(lambda x, g: experts(x, plan, g), (x, gates))


def test_no_tokens_and_no_kept_rows():
    experts = ModuleExperts([nn.Linear(4, 4), nn.Identity()])
    none = experts(torch.zeros(0, 4), plan_dispatch(torch.zeros(0, 1, dtype=torch.int64), 2), torch.zeros(0, 1))
    assert none.shape == (0, 4)
    ids, none_kept = torch.tensor([[0], [1]]), torch.zeros(2, 1, dtype=torch.bool)
    x = torch.full((2, 4), torch.nan)
    assert not experts(x, plan_dispatch(ids, 2, kept=none_kept), torch.ones(2, 1)).any()


def test_expert_choice_plans():
    linear = nn.Linear(4, 4)
    experts = ModuleExperts([linear, nn.Identity()])
    x, gates = torch.randn(3, 4), torch.tensor([[0.5, 2.0], [3.0, 9.0]])
    kept = torch.tensor([[True, True], [True, False]])
    out = experts(x, plan_expert_choice(torch.tensor([[0, 1], [1, 2]]), 3, kept=kept), gates)
    assert_close(out[0], 0.5 * linear(x[0]))
    assert_close(out[1], 2 * linear(x[1]) + 3 * x[1])
    assert not out[2].any()


def test_zero_expert_gives_zeros_and_no_gradient():
    x = torch.randn(2, 3, requires_grad=True)
    out = ZeroExpert()(x)
    assert torch.equal(out, torch.zeros(2, 3))
    assert not out.requires_grad


def test_errors():
    with pytest.raises(ValueError, match="modules must hold at least one expert, got none"):
        ModuleExperts([])
    with pytest.raises(ValueError, match="token_ndim must be at least 1, got 0"):
        ModuleExperts([nn.Identity()], token_ndim=0)
    experts = ModuleExperts([nn.Linear(4, 4), nn.Identity(), nn.Linear(4, 2)])
    x, gates, plan = torch.randn(3, 4), torch.ones(3, 2), plan_dispatch(IDS, 3)
    with pytest.raises(ValueError, match=r"x must have 2 dimensions, got shape \(1, 3, 4\)"):
        experts(x[None], plan, gates)
    with pytest.raises(ValueError, match=r"outputs of one shape: expected \(3, 4\), got \(3, 2\)"):
        experts(x, plan, gates)
    with pytest.raises(ValueError, match="plan must be for 3 experts, got one for 4"):
        experts(x, plan_dispatch(IDS, 4), gates)
    with pytest.raises(ValueError, match="x must have the plan's 3 tokens"):
        experts(x[:2], plan, gates)
    with pytest.raises(ValueError, match=r"gates must have one value per slot, \(3, 2\)"):
        experts(x, plan, gates[:, :1])
    with pytest.raises(ValueError, match=r"outputs of one shape: expected \(3, 4\), got \(1, 4\)"):
        ModuleExperts([nn.Identity(), nn.Identity(), Pooling()])(x, plan, gates)


def test_outputs_of_another_shape_than_was_announced_are_refused():
    experts, plan = ModuleExperts([nn.Linear(4, 3), nn.Linear(4, 3)], out_shape=(4,)), plan_dispatch(IDS // 2, 2)
    with pytest.raises(ValueError, match=r"outputs of one shape: expected \(3, 4\), got \(3, 3\)"):
        experts(torch.randn(3, 4), plan, torch.ones(3, 2))


def test_exported_experts_of_different_outputs_are_not_broadcast():
    moe = SparseMoE(TopKRouter(4, 2, 1), ModuleExperts([nn.Linear(4, 4), nn.Linear(4, 1)]))
    with pytest.raises(ValueError, match=r"outputs of one shape: expected \(3, 4\), got \(3, 1\)"):
        torch.export.export(moe, (torch.randn(3, 4),), strict=False)


class Pooling(nn.Module):
    """Returns one row for any number of rows, which experts must not."""

    def forward(self, x):
        return x.mean(0, keepdim=True)


def test_the_shape_of_the_output_is_known_without_any_kept_row():
    experts = ModuleExperts([nn.Linear(8, 3), nn.Linear(8, 3)], out_shape=(3,))
    moe = SparseMoE(TopKRouter(8, 2, 1), experts)
    x = torch.randn(4, 8)
    assert torch.equal(moe(x, mask=torch.zeros(4, dtype=torch.bool)).output, torch.zeros(4, 3))
    assert moe(x[:0]).output.shape == (0, 3)


class Normalising(nn.Module):
    """Divides by a norm, a deviation or takes a logarithm: gradients at zeros and at constant rows are NaN."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.scale = how, nn.Parameter(torch.ones(4))

    def forward(self, x):
        if self.how == "norm":
            return self.scale * x / x.norm(dim=-1, keepdim=True)
        if self.how == "deviation":
            return (x - x.mean(-1, keepdim=True)) / (self.scale * x).std(-1, keepdim=True)
        if self.how == "logarithm":
            return (self.scale * x).log()
        return (self.scale * x).square().sum(-1, keepdim=True).sqrt() + 1 / (self.scale * x)


@pytest.mark.parametrize("ids", [[0, 1, 2, 0], [0, 0, 0, 0], [1, 2, 1, 1], [2, 2, 2, 2]])
@pytest.mark.parametrize("how", ["norm", "deviation", "logarithm", "reciprocal"])
def test_compiled_experts_get_no_rows_with_nan_gradients(how, ids):
    torch._dynamo.reset()
    experts = ModuleExperts([Normalising(how), nn.Identity(), Normalising(how)])
    plan = plan_dispatch(torch.tensor(ids).unsqueeze(1), 3, kept=torch.tensor([True, True, True, False]).unsqueeze(1))
    x = torch.rand(4, 4) + 0.1
    if ids[1] == 1:
        x[1] = 0  # for the Identity
    x[3] = torch.nan  # padding
    gates = torch.rand(4, 1)
    results = []
    for run in (experts, torch.compile(experts, fullgraph=True, backend="aot_eager")):
        leaf = x.clone().requires_grad_()
        experts.zero_grad()
        run(leaf, plan, gates).square().sum().backward()
        results.append([leaf.grad, *(p.grad for p in experts.parameters())])
    for eager, compiled in zip(*results, strict=True):
        assert compiled.isfinite().all()
        assert_close(compiled, torch.zeros_like(compiled) if eager is None else eager)


def test_compiled_experts_without_any_row_have_zero_gradients():
    torch._dynamo.reset()
    experts = ModuleExperts([Normalising("norm"), Normalising("deviation")])
    compiled = torch.compile(experts, fullgraph=True, backend="aot_eager")
    none_kept = torch.zeros(3, 1, dtype=torch.bool)
    out = compiled(
        torch.full((3, 4), torch.nan), plan_dispatch(torch.tensor([[0], [1], [0]]), 2, kept=none_kept), torch.ones(3, 1)
    )
    out.sum().backward()
    assert not out.any()
    assert not any(p.grad.any() for p in experts.parameters())


def test_what_is_no_module_and_changed_banks_are_refused():
    with pytest.raises(ValueError, match=r"modules\[1\] must be an nn.Module, got a function"):
        ModuleExperts([nn.Identity(), lambda x: x])
    experts = ModuleExperts([nn.Identity(), nn.Identity()])
    experts.experts.append(nn.Identity())
    with pytest.raises(ValueError, match=r"experts must be the 2 that ModuleExperts was built with .*, got 3: build"):
        experts(torch.randn(3, 4), plan_dispatch(torch.tensor([[0], [1], [0]]), 2), torch.ones(3, 1))
