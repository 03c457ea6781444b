"""LoRA by peft: of stacked parameters (``target_parameters``) and of all linear layers (``all-linear``)."""

import pytest
import torch
from torch import Tensor, nn

from moekit import (
    FFN,
    BidirectionalCrossAttention,
    CrossScaleExpert,
    FFNExperts,
    HardRouter,
    ModalityGate,
    ModuleExperts,
    SparseMoE,
    TopKRouter,
)

peft = pytest.importorskip("peft")

DIM, EXPERTS = 6, 4
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:peft")


class Block(nn.Module):
    """A model with one layer: peft adapts the submodules of a model."""

    def __init__(self, moe: SparseMoE) -> None:
        super().__init__()
        self.moe = moe

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.moe(x, mask=mask).output


def make_block(experts: nn.Module | None = None, **options) -> Block:
    torch.manual_seed(0)
    router = TopKRouter(DIM, EXPERTS, 2, gate_hidden_dim=DIM, gate_bias=True)
    experts = FFNExperts(DIM, 5, EXPERTS, bias=True, init_scale=1.0) if experts is None else experts
    return Block(SparseMoE(router, experts, shared=FFN(DIM, 5), **options))


def adapt(block: Block, **options) -> nn.Module:
    model = peft.get_peft_model(block, peft.LoraConfig(r=2, lora_alpha=4, **options))
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.5)
    return model


def weights_used(block: Block) -> int:
    return sum(parameter.requires_grad for parameter in block.parameters())


@pytest.mark.parametrize("names", [("up_proj",), ("up_proj", "down_proj"), ("up_proj", "up_bias", "down_bias")])
def test_adapters_of_stacked_parameters_change_what_the_experts_compute(names: tuple[str, ...]) -> None:
    x, mask = torch.randn(3, 5, DIM), torch.rand(3, 5) > 0.2
    plain = make_block(capacity_factor=2.0)
    model = adapt(make_block(capacity_factor=2.0), target_parameters=[f"moe.experts.{name}" for name in names])
    assert type(model.base_model.model.moe.experts).__name__ == "ParamWrapper"
    output = model(x, mask)
    with model.disable_adapter():
        assert torch.equal(model(x, mask), plain(x, mask))
    output.square().sum().backward()
    adapters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert len(adapters) == 2 * len(names)
    assert all(parameter.grad.any() for parameter in adapters.values())
    merged = model.merge_and_unload()
    assert not torch.allclose(merged.moe.experts.up_proj, plain.moe.experts.up_proj)
    torch.testing.assert_close(merged(x, mask), output, rtol=1e-5, atol=1e-5)


def test_adapters_of_stacked_parameters_train_the_layer_only_through_themselves() -> None:
    model = adapt(make_block(), target_parameters=["moe.experts.down_proj"])
    x, target = torch.randn(32, DIM), torch.randn(32, DIM)
    base = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.05)
    losses = []
    for _ in range(30):
        loss = (model(x) - target).square().mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.8 * losses[0]
    assert all(torch.equal(p, base[name]) for name, p in model.named_parameters() if name in base)


@pytest.mark.parametrize("kind", ["stacked", "modules"])
def test_adapters_of_all_linear_layers_change_router_shared_expert_and_modules(kind: str) -> None:
    def make() -> Block:
        torch.manual_seed(2)
        modules = [nn.Linear(DIM, DIM), nn.Sequential(nn.Linear(DIM, 5), nn.GELU(), nn.Linear(5, DIM)), nn.Identity()]
        return make_block(ModuleExperts([*modules, nn.Linear(DIM, DIM)]) if kind == "modules" else None)

    x, plain = torch.randn(64, DIM), make()
    model = adapt(make(), target_modules="all-linear")
    moe = model.base_model.model.moe
    adapted = [type(layer).__module__.startswith("peft") for layer in moe.router.gate.layers]
    assert adapted == [True, True]
    routing, expected = moe.route(x), plain.moe.route(x)
    assert routing.logits.dtype == torch.float32
    assert not torch.allclose(routing.logits, expected.logits)
    with model.disable_adapter():
        assert torch.equal(model(x), plain(x))
    output = model(x)
    output.square().sum().backward()
    assert all(p.grad.any() for name, p in model.named_parameters() if "lora_" in name)
    merged = model.merge_and_unload()
    torch.testing.assert_close(merged.moe.route(x).logits, routing.logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(merged(x), output, rtol=1e-4, atol=1e-5)


def test_router_logits_of_an_adapted_bfloat16_model_are_float32() -> None:
    model = adapt(make_block().bfloat16(), target_modules="all-linear")
    moe = model.base_model.model.moe
    output = moe(torch.randn(5, DIM).bfloat16())
    assert output.output.dtype == torch.bfloat16
    assert output.stats.prob_sum.dtype == torch.float32


def test_adapters_of_a_hard_router_reach_its_decision() -> None:
    block = Block(SparseMoE(HardRouter(DIM, EXPERTS, init_scale=0.0), FFNExperts(DIM, 5, EXPERTS)))
    x = torch.randn(64, DIM)
    assert block.moe.route(x).expert_ids.eq(0).all()  # zero logits: the first expert
    model = adapt(block, target_modules=["moe.router.gate.layers.0"])
    assert model.base_model.model.moe.route(x).expert_ids.unique().numel() > 1


@pytest.mark.parametrize(
    "make",
    [
        lambda: ModalityGate((3, 4)),
        lambda: BidirectionalCrossAttention(8, num_heads=2),
        lambda: CrossScaleExpert((3, 4), 8, depth=2),
        lambda: FFN(DIM, 5, gated=True),
        lambda: TopKRouter(DIM, EXPERTS, 2, gate_hidden_dim=5, gate_bias=True),
        lambda: TopKRouter(DIM, EXPERTS, 2, noisy=True),
    ],
)
def test_resetting_draws_adapted_layers_as_plain_ones_and_keeps_the_adapters(make) -> None:
    plain, block = make(), make()
    layers = [name for name, layer in block.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    model = peft.get_peft_model(block, peft.LoraConfig(r=2, target_modules=layers))
    adapted = model.base_model.model
    for parameter in (*plain.parameters(), *adapted.parameters()):
        nn.init.constant_(parameter, 7.0)
    for module in (plain, adapted):
        torch.manual_seed(1)
        module.reset_parameters()
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            assert (parameter == 7.0).all()
        else:
            assert torch.equal(parameter, plain.get_parameter(name.replace(".base_layer", "")))
