"""Zero and identity experts beside others: values, gradients, counts, and that they are not run."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from moekit import (
    CrossScaleExperts,
    ExpertChoiceRouter,
    FFNExperts,
    HardRouter,
    ModuleExperts,
    SparseMoE,
    TopKRouter,
    ZeroComputationExperts,
    ZeroExpert,
    load_balancing_loss,
)
from tests.oracles import assert_close
from tests.strategies import few

DIM, COMPUTED, ZERO, IDENTITY = 6, 3, 2, 2
EXPERTS = COMPUTED + ZERO + IDENTITY


def bank(**options) -> ZeroComputationExperts:
    experts = FFNExperts(DIM, 5, COMPUTED, dtype=torch.float64, init_scale=1.0, **options)
    return ZeroComputationExperts(experts, num_zero=ZERO, num_identity=IDENTITY)


def run_one_by_one(experts: ZeroComputationExperts) -> ModuleExperts:
    """The same experts as modules that are each run on its rows."""

    class One(nn.Module):
        def __init__(self, expert: int) -> None:
            super().__init__()
            self.expert = expert

        def forward(self, x: Tensor) -> Tensor:
            stacked = experts.experts
            gate, value = (x @ stacked.up_proj[self.expert].T).chunk(2, -1)
            return (nn.functional.silu(gate) * value) @ stacked.down_proj[self.expert].T

    modules = [*(One(e) for e in range(COMPUTED)), *(ZeroExpert() for _ in range(ZERO))]
    return ModuleExperts([*modules, *(nn.Identity() for _ in range(IDENTITY))])


def layers(kind: str, seed: int, **options) -> tuple[SparseMoE, SparseMoE]:
    """A layer, and one that runs all experts, with the same weights."""
    torch.manual_seed(seed)
    if kind == "expert choice":
        router = ExpertChoiceRouter(DIM, EXPERTS, capacity_factor=2.0, dtype=torch.float64, init_scale=3.0)
    else:
        renormalize = kind == "renormalised"
        router = TopKRouter(DIM, EXPERTS, 3, renormalize=renormalize, dtype=torch.float64, init_scale=3.0)
    experts = bank()
    return SparseMoE(router, experts, **options), SparseMoE(router, run_one_by_one(experts), **options)


def results(layer: SparseMoE, x: Tensor, parameters: list[nn.Parameter], **options) -> list[Tensor]:
    x = x.clone().requires_grad_()
    output, stats = layer(x, **options)
    weight = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view(output.shape)
    loss = (output * weight).sum() + load_balancing_loss(stats)
    return [
        output.detach(),
        *(s.detach() for s in stats),
        *torch.autograd.grad(loss, [x, *parameters], materialize_grads=True),
    ]


@few
@given(
    kind=st.sampled_from(["renormalised", "plain", "expert choice"]),
    gates_on=st.sampled_from(["outputs", "inputs"]),
    capacity_factor=st.sampled_from([None, 0.7]),
    drop_policy=st.sampled_from(["position", "gate"]),
    masked=st.booleans(),
    tokens=st.integers(1, 17),
    seed=st.integers(0, 2**31),
)
def test_results_are_those_of_experts_that_are_run(
    kind, gates_on, capacity_factor, drop_policy, masked, tokens, seed
) -> None:
    options = {"capacity_factor": capacity_factor, "drop_policy": drop_policy, "gates_on": gates_on}
    if kind == "expert choice":
        options |= {"capacity_factor": None, "gates_on": "outputs"}
    mine, theirs = layers(kind, seed, **options)
    x = torch.randn(tokens, DIM, dtype=torch.float64)
    mask = torch.rand(tokens) > 0.3 if masked else None
    if mask is not None:
        x[~mask] = torch.nan  # of padding, nothing may reach an output or a gradient
    parameters = list(mine.parameters())
    for a, b in zip(results(mine, x, parameters, mask=mask), results(theirs, x, parameters, mask=mask), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("impl", ["reference", "torch"])
def test_slots_of_zero_and_identity_experts_are_no_rows(impl: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    layer = SparseMoE(TopKRouter(DIM, EXPERTS, 3, dtype=torch.float64), bank(impl=impl), impl=impl)
    plans, inner = [], layer.experts.experts.forward

    def forward(x, plan, gates):
        plans.append(plan)
        return inner(x, plan, gates)

    monkeypatch.setattr(layer.experts.experts, "forward", forward)
    x = torch.randn(40, DIM, dtype=torch.float64)
    stats = layer(x).stats
    assert plans[0].offsets[-1] == stats.tokens_per_expert[:COMPUTED].sum() < 40 * 3
    assert plans[0].num_experts == COMPUTED
    assert torch.equal(plans[0].tokens_per_expert, stats.tokens_per_expert[:COMPUTED])
    counted = SparseMoE(layer.router, run_counted := CountedRows(), impl=impl)
    counted(x)
    assert run_counted.rows == int(plans[0].offsets[-1])


class CountedRows(ZeroComputationExperts):
    """Counts the rows that modules are run on."""

    def __init__(self) -> None:
        super().__init__(ModuleExperts([nn.Identity() for _ in range(COMPUTED)]), num_zero=ZERO, num_identity=IDENTITY)
        self.rows = 0
        for expert in self.experts.experts:
            expert.register_forward_hook(self.count)

    def count(self, module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        self.rows += len(output)


def test_tokens_of_one_kind_alone() -> None:
    x = torch.randn(5, DIM, dtype=torch.float64)
    for expert, factor in ((COMPUTED, 0.0), (EXPERTS - 1, 1.0)):
        router = HardRouter(1, EXPERTS, gradient="none")
        router.gate = nn.Identity()
        logits = torch.full((5, EXPERTS), -1.0)
        logits[:, expert] = 1.0
        output, stats = SparseMoE(router, bank())(x, router_input=logits)
        assert torch.equal(output, factor * x)
        assert stats.tokens_per_expert[expert] == 5


def test_a_half_precision_output_is_rounded_once() -> None:
    torch.manual_seed(0)
    experts = ZeroComputationExperts(FFNExperts(8, 5, 2, dtype=torch.bfloat16), num_identity=2)
    x = torch.randn(50, 8, dtype=torch.bfloat16)
    layer = SparseMoE(TopKRouter(8, 4, 2, init_scale=4.0), experts)
    routing = layer.route(x)
    identities = torch.where(routing.expert_ids >= 2, routing.gates, 0).sum(-1, keepdim=True)
    alone = SparseMoE(layer.router, ZeroComputationExperts(experts.experts, num_zero=2))(x).output
    assert torch.equal(layer(x).output, (alone + identities * x).bfloat16())


def test_maps_of_samples() -> None:
    convolution = ModuleExperts([nn.Conv2d(3, 3, 1)], token_ndim=3)
    layer = SparseMoE(TopKRouter(4, 3, 2), ZeroComputationExperts(convolution, num_zero=1, num_identity=1))
    x, context = torch.randn(5, 3, 2, 2), torch.randn(5, 4)
    routing = layer.route(x, router_input=context)
    gates = torch.zeros(5, 3).scatter(1, routing.expert_ids, routing.gates)
    expected = gates[:, 0].view(5, 1, 1, 1) * convolution.experts[0](x) + gates[:, 2].view(5, 1, 1, 1) * x
    torch.testing.assert_close(layer(x, routing=routing).output, expected)


def test_tokens_that_are_not_finite_spoil_their_own_output_only() -> None:
    torch.manual_seed(0)
    layer = SparseMoE(TopKRouter(DIM, EXPERTS, 3, dtype=torch.float64), bank())
    x = torch.randn(9, DIM, dtype=torch.float64)
    expected = layer(x).output
    x[4, 2] = torch.inf
    output, stats = layer(x)
    assert output[4].isnan().all()
    assert stats.nonfinite_tokens == 1
    rest = [t for t in range(9) if t != 4]
    assert_close(output[rest], expected[rest])


def test_compiled_and_checkpointed_layers_give_the_same() -> None:
    mine, _ = layers("plain", 3, capacity_factor=0.8)
    x = torch.randn(2, 9, DIM, dtype=torch.float64)
    parameters = list(mine.parameters())
    expected = results(mine, x, parameters)
    compiled = torch.compile(mine, backend="aot_eager", fullgraph=True)
    again = {
        "compiled": compiled,
        "checkpointed": lambda x, **options: checkpoint(mine, x, use_reentrant=False, **options),
    }
    for name, layer in again.items():
        for a, b in zip(results(layer, x, parameters), expected, strict=True):
            torch.testing.assert_close(a, b, msg=name)


def test_weights_are_drawn_anew_and_settings_are_shown() -> None:
    experts = bank()
    before = experts.experts.up_proj.detach().clone()
    experts.reset_parameters()
    assert not torch.equal(experts.experts.up_proj, before)
    assert "num_experts=7, num_zero=2, num_identity=2" in repr(experts)
    with pytest.raises(
        AttributeError, match="num_identity=2 of ZeroComputationExperts is fixed once it is built, got 3"
    ):
        experts.num_identity = 3


def test_what_does_not_fit_is_refused() -> None:
    for name in ("num_zero", "num_identity"):
        with pytest.raises(ValueError, match=f"{name} must be at least 0, got -1"):
            ZeroComputationExperts(FFNExperts(DIM, 5, 2), **{name: -1})
    with pytest.raises(ValueError, match="experts must be Experts, got a router, TopKRouter"):
        ZeroComputationExperts(TopKRouter(4, 2, 1), num_zero=1)
    with pytest.raises(ValueError, match=r"num_identity must be 0 beside experts over pyramids, .*, got 1"):
        ZeroComputationExperts(CrossScaleExperts((3, 4), 5, 2), num_identity=1)
    layer = SparseMoE(TopKRouter(DIM, 4, 2), ZeroComputationExperts(FFNExperts(DIM, 5, 2, out_dim=3), num_identity=2))
    with pytest.raises(ValueError, match=r"experts must return the shape of x beside identity experts, \(4, 6\), got"):
        layer(torch.randn(4, DIM))
    with pytest.raises(ValueError, match="router and experts must agree on the number of experts, got 3 and 7"):
        SparseMoE(TopKRouter(DIM, 3, 2), bank())
    with pytest.raises(ValueError, match="impl of the layer and of its experts must be the same, got impl='torch'"):
        SparseMoE(TopKRouter(DIM, EXPERTS, 2), bank(impl="reference"), impl="torch")
