"""LoRA by peft from its first step on: in layers of every implementation, and in models of transformers."""

import pytest
import torch
from torch import Tensor, nn

from moekit import FFN, FFNExperts, SparseMoE, TopKRouter
from moekit.interop import register_experts, swap_moe_blocks_
from tests.moekit.transformers_families import MARKS, model_of
from tests.oracles import relative_error

peft = pytest.importorskip("peft")

pytestmark = [*MARKS, pytest.mark.filterwarnings("ignore::UserWarning:peft")]
PROMPT = torch.arange(6)[None]
EXPERTS = {"target_modules": [], "target_parameters": ["moe.experts.up_proj", "moe.experts.down_proj"]}
GATE = {"target_modules": [], "target_parameters": ["gate.layers.0.weight"]}
LINEAR = {"target_modules": "all-linear"}


class Block(nn.Module):
    """A model with one layer."""

    def __init__(self, impl: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        router, experts = TopKRouter(6, 4, 2, impl=impl), FFNExperts(6, 5, 4, bias=True, init_scale=1.0, impl=impl)
        self.moe = SparseMoE(router, experts, shared=FFN(6, 5), impl=impl)

    def forward(self, x: Tensor) -> Tensor:
        return self.moe(x).output


def adapters_of(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if "lora_" in name}


def train_a_step(model: nn.Module, loss) -> None:
    """Takes two steps (``B`` starts at zero, so at first ``A`` gets no gradient) and checks what moved."""
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        loss(model).backward()
        optimizer.step()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == set(adapters_of(model))


@pytest.mark.parametrize("impl", ["reference", "torch"])
@pytest.mark.parametrize("config", [EXPERTS, GATE, LINEAR], ids=["experts", "gate", "all-linear"])
def test_layers_start_from_the_output_train_only_adapters_and_are_loaded_again(tmp_path, impl, config):
    x = torch.randn(30, 6)
    expected = Block(impl)(x)
    model = peft.get_peft_model(Block(impl), peft.LoraConfig(r=2, **config))
    assert torch.equal(model(x), expected)
    train_a_step(model, lambda model: model(x).square().sum())
    output = model(x)
    model.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(Block(impl), tmp_path)
    assert torch.equal(loaded(x), output)
    merged = loaded.merge_and_unload()
    assert relative_error(merged(x), output) < 1e-5
    assert merged.state_dict().keys() == Block(impl).state_dict().keys()


@pytest.mark.parametrize("mode", ["registered", "swapped"])
@pytest.mark.parametrize(("family", "router"), [("mixtral", "gate.weight"), ("gpt_oss", "router.weight")])
@pytest.mark.parametrize("what", ["experts", "router", "all-linear"])
def test_models_of_transformers_start_from_the_output_and_train_only_adapters(tmp_path, family, router, mode, what):
    def make() -> nn.Module:
        model = model_of(family)
        if mode == "registered":
            register_experts()
            model.set_experts_implementation("moekit")
        else:
            swap_moe_blocks_(model)
        return model

    with torch.no_grad():
        expected = make()(PROMPT).logits
    names = ["experts.gate_up_proj", "experts.down_proj"] if what == "experts" else [router]
    config = LINEAR if what == "all-linear" else {"target_modules": [], "target_parameters": names}
    model = peft.get_peft_model(make(), peft.LoraConfig(r=2, **config))
    assert torch.equal(model(PROMPT).logits, expected)
    train_a_step(model, lambda model: model(PROMPT, labels=PROMPT).loss)
    with torch.no_grad():
        output = model(PROMPT).logits
        assert not torch.equal(output, expected)
        model.save_pretrained(tmp_path)
        loaded = peft.PeftModel.from_pretrained(make(), tmp_path)
        assert torch.equal(loaded(PROMPT).logits, output)
        assert relative_error(loaded.merge_and_unload()(PROMPT).logits, output) < 1e-4
