"""Upcycled models: the dense function at first, a state that saves and loads, training that moves experts apart."""

import copy
import io
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from moekit import HardRouter, SparseMoE, TopKRouter
from moekit.inspect import record_routing
from moekit.interop import UpcycledMLP, to_dense_, upcycle_
from tests.moekit.interop.mlps import DIM, HIDDEN, Gated, Model, Plain, sequential, tokens
from tests.test_import import ROOT

FOUR = {"num_experts": 4, "top_k": 2}


@settings(max_examples=30)
@given(
    granularity=st.sampled_from([1, 2, 4]),
    groups=st.integers(1, 3),
    seed=st.integers(0, 99),
    gated=st.booleans(),
    data=st.data(),
)
def test_at_step_0_the_model_computes_the_dense_function(
    granularity: int, groups: int, seed: int, gated: bool, data: st.DataObject
) -> None:
    chosen = data.draw(st.integers(1, groups))
    torch.manual_seed(seed)
    model = Model(Gated if gated else sequential).eval()
    x = tokens()
    before = model(x)
    sizes = {"num_experts": groups * granularity, "top_k": chosen * granularity, "granularity": granularity}
    layers = upcycle_(model, "blocks.*.mlp", **sizes, router_init_scale=1.0)
    assert list(layers) == ["blocks.0.mlp", "blocks.1.mlp"]
    assert torch.allclose(model(x), before, rtol=0, atol=1e-5)
    experts = layers["blocks.0.mlp"].moe.experts
    assert (experts.num_experts, experts.hidden_dim) == (groups * granularity, HIDDEN // granularity)


def test_tokens_get_whole_virtual_groups_and_each_part_costs_its_share() -> None:
    model = Model()
    layer = upcycle_(model, "blocks.0.mlp", num_experts=8, top_k=4, granularity=2)["blocks.0.mlp"]
    routing = layer.moe.route(tokens(50))
    groups = (routing.expert_ids // 2).sort(dim=-1).values
    parts = (routing.expert_ids % 2).sum(-1)
    assert torch.equal(groups[:, ::2], groups[:, 1::2])
    assert (parts == 2).all()
    assert routing.gates.sum(-1).allclose(torch.tensor(2.0))
    assert groups.unique().numel() == 4
    assert (layer.shard_of_expert, layer.granularity) == ((0, 1) * 4, 2)
    # Tokens without any logit of their own, such as padding of zeros, get whole groups too.
    assert layer.moe.route(torch.zeros(1, DIM)).expert_ids.sort().values.tolist() == [[0, 1, 2, 3]]


def test_a_single_expert_per_token_has_a_gate_of_1_and_a_gradient() -> None:
    model = Model()
    layer = upcycle_(model, "blocks.0.mlp", num_experts=4, top_k=1)["blocks.0.mlp"]
    assert isinstance(layer.moe.router, HardRouter)
    model(tokens()).square().mean().backward()
    assert layer.moe.router.gate.layers[0].weight.grad.abs().sum() > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_dtype_mode_and_what_is_trained_are_kept(dtype: torch.dtype) -> None:
    model = Model(Plain).to(dtype).train()
    model.blocks[0]["mlp"].first.weight.requires_grad_(False)
    model.blocks[1]["mlp"].eval()
    layers = list(upcycle_(model, "blocks.*.mlp", **FOUR).values())
    assert {each.dtype for layer in layers for each in layer.parameters()} == {dtype}
    experts = layers[0].moe.experts
    assert not experts.up_proj.requires_grad
    assert all(each.requires_grad for each in (experts.down_proj, experts.up_bias, experts.down_bias))
    assert all(module.training for module in layers[0].modules())
    assert not any(module.training for module in layers[1].modules())
    assert model(tokens().to(dtype)).dtype == dtype


def test_the_output_has_the_dtype_of_the_mlp_under_autocast() -> None:
    model = nn.Sequential(sequential())
    dense = copy.deepcopy(model)
    upcycle_(model, "0", **FOUR)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        theirs, mine = dense(tokens()), model(tokens())
    assert mine.dtype == theirs.dtype
    assert mine.shape == theirs.shape


@pytest.mark.parametrize("where", ["output", "hidden"])
def test_dropouts_stay_where_they_were(where: str) -> None:
    model = nn.Sequential(Plain(drop=where, p=0.5)).train()
    dropout = model[0].drop
    upcycle_(model, "0", **FOUR)
    x = tokens(200)
    output = model(x)
    assert any(module is dropout for module in model.modules())
    if where == "output":
        assert 0.4 < (output == 0).float().mean() < 0.6
    dropout.p = 0.0
    assert torch.allclose(model(x), model.eval()(x))
    dropout.p = 1.0
    dropped = model.train()(x)
    expected = torch.zeros(DIM) if where == "output" else model[0].moe.experts.down_bias[0]
    assert torch.allclose(dropped, expected.expand_as(dropped), atol=1e-6)


def test_modules_that_stand_in_several_places_become_one_layer() -> None:
    shared = sequential()
    model = nn.ModuleDict({"a": shared, "b": nn.ModuleDict({"mlp": shared})})
    layer = upcycle_(model, "a", **FOUR)["a"]
    assert model["a"] is model["b"]["mlp"] is layer


def test_a_state_dict_loads_into_a_model_that_was_upcycled_alike() -> None:
    model, other = Model(Gated), Model(Gated)
    for each in (model, other):
        upcycle_(each, "blocks.*.mlp", **FOUR, granularity=2, selection_bias=True)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight))
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    x = tokens()
    assert torch.equal(other(x), model(x))
    assert set(other.state_dict()) == {
        *(f"blocks.{i}.norm.{name}" for i in (0, 1) for name in ("weight", "bias")),
        *(f"blocks.{i}.mlp.moe.router.{name}" for i in (0, 1) for name in ("gate.layers.0.weight", "selection_bias")),
        *(
            f"blocks.{i}.mlp.moe.experts.{name}"
            for i in (0, 1)
            for name in ("up_proj", "down_proj", "up_bias", "down_bias")
        ),
    }
    assert torch.equal(copy.deepcopy(model)(x), model(x))


def test_on_the_meta_device_for_a_checkpoint_that_is_loaded_later() -> None:
    model = Model()
    upcycle_(model, "blocks.*.mlp", **FOUR)
    with torch.device("meta"):
        empty = Model()
    upcycle_(empty, "blocks.*.mlp", **FOUR)
    assert all(each.is_meta for each in empty.parameters())
    empty.load_state_dict(model.state_dict(), assign=True)
    x = tokens()
    assert torch.equal(empty(x), model(x))


def test_generators_decide_and_the_default_one_rests() -> None:
    def router_weight(seed: int) -> torch.Tensor:
        model = nn.Sequential(sequential())
        state = torch.get_rng_state()
        upcycle_(model, "0", **FOUR, generator=torch.Generator().manual_seed(seed))
        assert torch.equal(torch.get_rng_state(), state)
        return model[0].moe.router.gate.layers[0].weight

    assert torch.equal(router_weight(1), router_weight(1))
    assert not torch.equal(router_weight(1), router_weight(2))


@pytest.mark.parametrize("granularity", [1, 2])
def test_training_moves_experts_apart(granularity: int) -> None:
    model = Model()
    layers = upcycle_(model, "blocks.*.mlp", **FOUR, granularity=granularity)
    x, target = tokens(64), tokens(64)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(20):
        optimiser.zero_grad()
        loss = (model(x) - target).square().mean()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    for layer in layers.values():
        up = layer.moe.experts.up_proj
        assert torch.pdist(up.flatten(1)).min() > 1e-2
        assert layer.moe.router.gate.layers[0].weight.grad.abs().sum() > 0


def test_upcycled_layers_are_recorded() -> None:
    model = Model()
    upcycle_(model, "blocks.*.mlp", **FOUR)
    with record_routing(model) as record:
        model(tokens())
    assert record.layers["blocks.0.mlp.moe"].load.sum() == 30


def test_it_compiles_in_one_graph() -> None:
    model = Model(Gated).eval()
    upcycle_(model, "blocks.*.mlp", **FOUR)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    x = tokens()
    assert torch.allclose(compiled(x), model(x), atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_experts": 4, "top_k": 5}, "top_k must be between 1 and num_experts=4, got 5"),
        ({"num_experts": 6, "top_k": 4, "granularity": 4}, "num_experts must be a multiple of granularity=4.*got 6"),
        ({"num_experts": 8, "top_k": 2, "granularity": 4}, "top_k must be a multiple of granularity=4.*got 2"),
        ({"num_experts": 3, "top_k": 3, "granularity": 3}, "has a hidden width of 8, which granularity=3 does not"),
        ({"num_experts": 3, "top_k": 3, "granularity": 0}, "granularity must be at least 1, got 0"),
        ({"num_experts": 4, "top_k": 1, "selection_bias": True}, "selection_bias=True needs top_k of at least 2"),
        ({**FOUR, "method": "copies"}, "method must be an UpcyclingMethod, such as Copies.*got 'copies'"),
        ({**FOUR, "impl": "fast"}, "impl must be one of"),
    ],
)
def test_errors_of_options(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        upcycle_(Model(), "blocks.*.mlp", **options)


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("blocks.*.mpl", r"'blocks.\*.mpl', which matches none of Model. Near names: 'blocks.\*.mlp'"),
        ("layers.*.mlp", r"Near names: 'blocks.\*.mlp'"),
        ("*.mlp", r"Near names: 'blocks.\*.mlp'"),
        (["blocks.*.mlp", "head"], "'head', which matches none of Model"),
        ([], "where must be a pattern of module names or several, got none"),
        (["blocks.0", "blocks.0.mlp"], "must not match a module within another, got 'blocks.0.mlp' in 'blocks.0'"),
    ],
)
def test_errors_of_patterns(where: str | list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        upcycle_(Model(), where, **FOUR)


@pytest.mark.parametrize("where", ["blocks.0.mlp", "**.0.mlp", "bl?cks.0.*lp", ["blocks.0.mlp", "**.0.mlp"]])
def test_patterns(where: str | list[str]) -> None:
    assert list(upcycle_(Model(), where, **FOUR)) == ["blocks.0.mlp"]


def test_a_layer_that_computes_something_else_is_not_put_in_place() -> None:
    model = Model()
    with torch.no_grad():
        model.blocks[1]["mlp"][0].weight[0, 0] = torch.nan
    before = dict(model.named_modules())
    with pytest.raises(ValueError, match=r"'blocks.1.mlp', a Sequential, would become a layer that computes something"):
        upcycle_(model, "blocks.*.mlp", **FOUR)
    assert dict(model.named_modules()) == before


def test_a_whole_model_is_pickled() -> None:
    model = Model(Gated)
    upcycle_(model, "blocks.*.mlp", **FOUR)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    x = tokens()
    assert torch.equal(loaded(x), model(x))
    assert list(to_dense_(loaded)) == ["blocks.0.mlp", "blocks.1.mlp"]


def test_layers_show_what_they_stand_for() -> None:
    model = Model(Plain)
    layer = upcycle_(model, "blocks.0.mlp", num_experts=4, top_k=2, granularity=2)["blocks.0.mlp"]
    assert isinstance(layer, UpcycledMLP)
    assert isinstance(layer.moe, SparseMoE)
    assert isinstance(layer.moe.router, TopKRouter)
    assert "in place of Plain, granularity=2" in repr(layer)


def test_models_of_timm_and_transformers() -> None:
    timm = pytest.importorskip("timm", reason="timm is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    vit = timm.create_model("vit_tiny_patch16_224", depth=2, img_size=32, num_classes=5).eval()
    swin_sizes = {"depths": (1, 1), "embed_dim": 8, "num_heads": (1, 1), "img_size": 28, "window_size": 7}
    swin = timm.create_model("swin_tiny_patch4_window7_224", **swin_sizes, patch_size=2).eval()
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.LlamaConfig(**sizes, vocab_size=40, bos_token_id=None, eos_token_id=None)
    llama = transformers.LlamaForCausalLM(config).eval()
    for model, where, inputs, count in (
        (vit, "blocks.*.mlp", torch.randn(2, 3, 32, 32), 2),
        (swin, "layers.*.blocks.*.mlp", torch.randn(2, 3, 28, 28), 2),
        (llama, "model.layers.*.mlp", torch.arange(6)[None], 2),
    ):
        with torch.no_grad():
            before = model(inputs)
            assert len(upcycle_(model, where, num_experts=8, top_k=4, granularity=2)) == count
            after = model(inputs)
        before, after = (each if isinstance(each, torch.Tensor) else each.logits for each in (before, after))
        assert torch.allclose(after, before, rtol=0, atol=1e-5 * before.abs().max())
    prompt = torch.arange(5)[None]
    assert llama.generate(prompt, attention_mask=prompt >= 0, max_new_tokens=3, pad_token_id=0).shape == (1, 8)


def test_importing_interop_imports_neither_timm_nor_transformers() -> None:
    code = (
        "import sys; import moekit.interop, torch; from torch import nn\n"
        "m = nn.Sequential(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4)))\n"
        "moekit.interop.upcycle_(m, '0', num_experts=2, top_k=2)\n"
        "assert not {'timm', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
