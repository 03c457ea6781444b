"""Families of transformers whose blocks become layers and back, and whose models are computed by moekit in place."""

import copy
import importlib
import pickle

import peft
import pytest
import torch
import transformers
from torch import nn
from transformers.models.mixtral.modeling_mixtral import MixtralTopKRouter

from benchmarks.families.build import build
from benchmarks.families.compare import output_of, tokens
from moekit.inspect import record_routing
from moekit.interop import from_transformers, swap_moe_blocks_, to_transformers
from tests.oracles import relative_error

# Of each, the class of its blocks.
FAMILIES = {
    "aria": "AriaTextMoELayer",
    "dbrx": "DbrxFFN",
    "deepseek_v2": "DeepseekV2Moe",
    "deepseek_v3": "DeepseekV3MoE",
    "dots1": "Dots1MoE",
    "ernie4_5_moe": "Ernie4_5_MoeSparseMoeBlock",
    "flex_olmo": "FlexOlmoSparseMoeBlock",
    "glm4_moe": "Glm4MoeMoE",
    "gpt_oss": "GptOssMLP",
    "granitemoe": "GraniteMoeMoE",
    "hunyuan_v1_moe": "HunYuanMoEV1Moe",
    "jamba": "JambaSparseMoeBlock",
    "lfm2_moe": "Lfm2MoeSparseMoeBlock",
    "llama4": "Llama4TextMoe",
    "longcat_flash": "LongcatFlashMoE",
    "minimax_m2": "MiniMaxM2SparseMoeBlock",
    "mixtral": "MixtralSparseMoeBlock",
    "nemotron_h": "NemotronHMoE",
    "olmoe": "OlmoeSparseMoeBlock",
    "phimoe": "PhimoeSparseMoeBlock",
    "qwen2_moe": "Qwen2MoeSparseMoeBlock",
    "qwen3_5_moe": "Qwen3_5MoeSparseMoeBlock",
    "qwen3_moe": "Qwen3MoeSparseMoeBlock",
    "qwen3_next": "Qwen3NextSparseMoeBlock",
}
DIM, EXPERTS = 32, 4

INSTALLED = tuple(int(part) for part in transformers.__version__.split(".")[:2])

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # of transformers, about the models' own defaults
    pytest.mark.skipif(INSTALLED < (5, 24), reason="blocks of older transformers are made otherwise, and refused"),
]


@pytest.fixture(autouse=True)
def _quiet():
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    yield
    transformers.logging.enable_progress_bar()
    transformers.logging.set_verbosity_warning()


def _model(family: str, dtype: torch.dtype = torch.float32, **settings: object) -> nn.Module:
    try:
        importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    except ImportError:
        pytest.skip(f"transformers {transformers.__version__} has no {family}")
    model = build(family, dtype, **settings)
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(3)
        for block in _blocks(model):
            # Biases and corrections start at zero, where no error of theirs would show.
            for tensor in [*block.parameters(), *block.buffers()]:
                if tensor.ndim <= 2:
                    tensor.normal_(std=0.1)
    return model


def _blocks(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if type(module).__name__ in FAMILIES.values()]


def _block(family: str, dtype: torch.dtype = torch.float32, **settings: object) -> nn.Module:
    return _blocks(_model(family, dtype, **settings))[0]


def _output(block: nn.Module, x: torch.Tensor) -> torch.Tensor:
    output = block(x)
    return (output if isinstance(output, torch.Tensor) else output[0]).view(x.shape)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_block_becomes_a_layer_of_the_same_output_and_gradients_and_back(family):
    block = _block(family)
    layer = from_transformers(block)
    theirs = torch.randn(2, 9, DIM, requires_grad=True)
    mine = theirs.detach().clone().requires_grad_()
    weight = torch.randn(2, 9, DIM)
    expected, output = _output(block, theirs.clone()), layer(mine).output
    (expected * weight).sum().backward()
    (output * weight).sum().backward()
    assert relative_error(output, expected) <= 1e-5
    assert relative_error(mine.grad, theirs.grad) <= 1e-5
    # A block whose weights are the gradients becomes a layer whose weights are those that the layer should have.
    gradients = copy.deepcopy(block)
    for parameter, of_block in zip(gradients.parameters(), block.parameters(), strict=True):
        parameter.data = parameter.data if of_block.grad is None else of_block.grad
    of_weights = dict(from_transformers(gradients).named_parameters())
    for name, parameter in layer.named_parameters():
        assert relative_error(parameter.grad, of_weights[name]) <= 1e-5, name

    before = {name: tensor.clone() for name, tensor in block.state_dict().items()}
    with torch.no_grad():
        for name, tensor in block.state_dict().items():
            # LongCat keeps rows for its identity experts, which nothing reads or writes.
            unread = family == "longcat_flash" and name == "experts.gate_up_proj"
            (tensor[:EXPERTS] if unread else tensor).zero_()
    assert to_transformers(layer, block) is block
    for name, tensor in block.state_dict().items():
        assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize("family", ["deepseek_v3", "gpt_oss", "mixtral", "nemotron_h"])
def test_a_block_in_bfloat16_becomes_a_layer_as_near_to_float64(family):
    """Where no rounding makes the block choose another expert, as here."""
    block = _block(family, torch.bfloat16)
    exact = copy.deepcopy(block).double()
    x = torch.randn(1, 16, DIM, dtype=torch.bfloat16)
    expected = _output(exact, x.double())
    with torch.no_grad():
        theirs = relative_error(_output(block, x.clone()).double(), expected)
        mine = relative_error(from_transformers(block)(x).output.double(), expected)
    assert mine <= 2 * theirs <= 4e-2


def _run(model: nn.Module) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    output = output_of(model, tokens())
    weight = torch.randn(output.shape, generator=torch.Generator().manual_seed(2))
    (output * weight).sum().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return output.detach(), gradients


def _generated(model: nn.Module) -> torch.Tensor:
    options = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
    return model.generate(tokens(), attention_mask=torch.ones_like(tokens()), **options)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_swapped_model_computes_the_same_saves_the_same_and_swaps_back_bit_for_bit(family, tmp_path):
    model = _model(family)
    modules, state = list(model.named_modules()), model.state_dict(keep_vars=True)
    kinds = [type(module) for module in model.modules()]
    expected, expected_gradients = _run(model)
    generated = _generated(model)
    with swap_moe_blocks_(model) as swapped:
        assert len(swapped) == len(_names(model, FAMILIES[family])) >= 1
        assert list(swapped) == _names(model, FAMILIES[family])
        output, gradients = _run(model)
        assert relative_error(output, expected) <= 1e-5
        assert gradients.keys() == expected_gradients.keys()
        for name, gradient in gradients.items():
            assert relative_error(gradient, expected_gradients[name]) <= 1e-5, name
        assert torch.equal(_generated(model), generated)
        # The same modules and the same tensors, by identity.
        assert all(a is b for (_, a), (_, b) in zip(model.named_modules(), modules, strict=True))
        now = model.state_dict(keep_vars=True)
        assert now.keys() == state.keys()
        assert all(now[name] is state[name] for name in state)
        model.save_pretrained(tmp_path)
        loaded, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
        assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        swap_moe_blocks_(loaded.eval())
        assert relative_error(output_of(loaded, tokens()), output) <= 1e-6
    assert [type(module) for module in model.modules()] == kinds
    restored, restored_gradients = _run(model)
    assert torch.equal(restored, expected)
    assert all(torch.equal(restored_gradients[name], gradient) for name, gradient in expected_gradients.items())


def _names(model: nn.Module, kind: str) -> list[str]:
    """Names of blocks of a class, or of a subclass of it, as a block that is swapped."""
    return [name for name, each in model.named_modules() if kind in {base.__name__ for base in type(each).__mro__}]


@pytest.mark.parametrize("family", ["dbrx", "gpt_oss", "lfm2_moe", "minimax_m2", "qwen2_moe"])
def test_a_swapped_block_returns_what_the_block_returned(family):
    model = _model(family)
    x, block = torch.randn(2, 5, DIM), _blocks(model)[0]
    router = block.router if hasattr(block, "router") else block.gate
    routed = []
    handle = router.register_forward_hook(lambda module, arguments, output: routed.append(output))
    expected = block(x.clone())
    handle.remove()
    with swap_moe_blocks_(model):
        handle = router.register_forward_hook(lambda module, arguments, output: routed.append(output))
        output = block(x.clone())
        handle.remove()
    _assert_same_structure(output, expected)
    _assert_same_structure(*routed[::-1])


def _assert_same_structure(output: object, expected: object) -> None:
    assert type(output) is type(expected)
    if isinstance(expected, torch.Tensor):
        assert output.shape == expected.shape
        assert output.dtype == expected.dtype
        assert relative_error(output.double(), expected.double()) <= 1e-5
    else:
        assert len(output) == len(expected)
        for mine, theirs in zip(output, expected, strict=True):
            _assert_same_structure(mine, theirs)


@pytest.mark.parametrize("family", ["mixtral", "deepseek_v3", "granitemoe"])
def test_a_swapped_model_records_its_router_logits(family):
    model = _model(family)
    options = {"input_ids": tokens(), "output_router_logits": True}
    expected = model(**options)
    with swap_moe_blocks_(model):
        output = model(**options)
    for name in ("router_logits", "aux_loss"):
        if expected.get(name) is not None:
            _assert_same_structure(output[name], expected[name])
    assert len(output.router_logits) == len(_blocks(model))


def test_a_swapped_model_is_recorded_copied_trained_and_moved():
    model = _model("qwen2_moe")
    with pytest.raises(ValueError, match="reported no routing"), record_routing(model):
        model(tokens())
    swapped = swap_moe_blocks_(model)
    with record_routing(model) as record:
        expected = model(tokens()).logits
    assert list(record.layers) == [f"{name}.experts" for name in swapped]
    for same in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(same(tokens()).logits, expected)
        block = _swapped_blocks(same)[0]
        # Its routers read its own weights.
        block.gate.weight.data.zero_()
        assert not torch.equal(same(tokens()).logits, expected)
    assert torch.equal(model(tokens()).logits, expected)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.train()(tokens()).logits.square().mean().backward()
    optimizer.step()
    model.eval().double()
    trained = model(tokens()).logits
    swapped.restore()
    swapped.restore()  # once more does nothing
    assert relative_error(model(tokens()).logits, trained) <= 1e-6
    assert relative_error(trained, expected.double()) > 1e-3


def _swapped_blocks(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if hasattr(module, "experts")]


@pytest.mark.parametrize("family", ["gpt_oss", "deepseek_v3"])
def test_a_swapped_model_compiles_whole_checkpoints_and_runs_under_autocast(family):
    model = _model(family)
    with swap_moe_blocks_(model):
        expected, gradients = _run(model)
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        assert relative_error(compiled(input_ids=tokens(), use_cache=False).logits, expected) <= 1e-6
        with torch.autocast("cpu", torch.bfloat16):
            assert relative_error(output_of(model, tokens()), expected) <= 5e-2
        model.train().gradient_checkpointing_enable()
        again, gradients_again = _run(model)
    assert relative_error(again, expected) <= 1e-6
    assert all(relative_error(gradients_again[name], each) <= 1e-5 for name, each in gradients.items())


@pytest.mark.parametrize("family", ["dbrx", "llama4", "longcat_flash", "minimax_m2", "phimoe"])
def test_a_swapped_block_compiles_whole_and_is_exported(family):
    model = _model(family)
    block, x = _blocks(model)[0], torch.randn(2, 5, DIM)
    expected = _output(block, x.clone())
    with swap_moe_blocks_(model), torch.no_grad():
        compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
        assert relative_error(_output(compiled, x.clone()), expected) <= 1e-5
        program = torch.export.export(block, (x.clone(),))
        assert relative_error(_output(program.module(), x.clone()), expected) <= 1e-5


def test_lora_of_a_swapped_model_starts_from_its_output_and_trains_only_its_own():
    model = _model("mixtral")
    expected = output_of(model, tokens())
    swap_moe_blocks_(model)
    parameters = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj", "mlp.gate.weight"]
    tuned = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=[], target_parameters=parameters))
    with torch.no_grad():
        assert relative_error(output_of(tuned, tokens()), expected) <= 1e-5
    output_of(tuned, tokens()).square().mean().backward()
    # One of each pair starts at zero, so the other has no gradient yet.
    trained = {name for name, p in tuned.named_parameters() if p.grad is not None and p.grad.any()}
    assert trained
    assert all("lora_" in name for name in trained)
    assert {part for part in ("experts", "gate.") for name in trained if part in name} == {"experts", "gate."}


def test_blocks_are_swapped_back_after_an_error():
    model = _model("mixtral")
    with pytest.raises(RuntimeError, match="of the caller"), swap_moe_blocks_(model):
        raise RuntimeError("of the caller")
    assert {type(block).__name__ for block in _blocks(model)} == {"MixtralSparseMoeBlock"}
    assert type(_blocks(model)[0].gate).__name__ == "MixtralTopKRouter"
    assert "_moekit" not in vars(_blocks(model)[0].gate)


def test_all_blocks_are_swapped_or_none():
    model = _model("mixtral")
    _blocks(model)[1].jitter_noise = 0.1
    with pytest.raises(ValueError, match=r"but model.layers.1.mlp is not: .* with jitter_noise=0.1"):
        swap_moe_blocks_(model)
    assert type(_blocks(model)[0].gate).__name__ == "MixtralTopKRouter"
    with pytest.raises(ValueError, match=r"model must hold sparse blocks of transformers, got a Linear without any of"):
        swap_moe_blocks_(nn.Linear(2, 2))
    _blocks(model)[1].jitter_noise = 0.0
    swapped = swap_moe_blocks_(model)
    assert repr(swapped) == "SwappedBlocks(model.layers.0.mlp, model.layers.1.mlp)"
    with pytest.raises(ValueError, match=r"model.layers.0.mlp is: restore\(\) it first"):
        swap_moe_blocks_(model)
    with pytest.raises(ValueError, match=r"block must have nothing .* got a MixtralSparseMoeBlock with .*gate._moekit"):
        from_transformers(_blocks(model)[0])
    gate = _blocks(model)[1].gate
    kind = type(gate)
    gate.__class__ = type("Sharded", (kind,), {})
    with pytest.raises(ValueError, match="as they were swapped, got a Sharded in place of a MixtralTopKRouter"):
        swapped.restore()
    gate.__class__ = kind
    swapped.restore()
    assert type(gate).__name__ == "MixtralTopKRouter"


def _ids_before_gates(self, x, _forward=MixtralTopKRouter.forward):
    logits, gates, ids = _forward(self, x)
    return logits, ids, gates


def _of_such_a_router(self, x):
    _, ids, gates = self.gate(x.view(-1, x.shape[-1]))
    return self.experts(x.view(-1, x.shape[-1]), ids, gates).view(x.shape)


def test_a_router_that_returns_in_another_order_is_not_swapped(monkeypatch):
    """As in another version of transformers: the layer computes the same, but the router cannot be replaced alone."""
    model = _model("mixtral")
    block, x = _blocks(model)[0], torch.randn(2, 9, DIM)
    expected = block(x)
    monkeypatch.setattr(type(block.gate), "forward", _ids_before_gates)
    monkeypatch.setattr(type(block), "forward", _of_such_a_router)
    assert relative_error(from_transformers(block)(x).output, expected) <= 1e-5
    with pytest.raises(ValueError, match=r"model.layers.0.mlp is not: expert_ids must be of an integer dtype"):
        swap_moe_blocks_(model)
    assert torch.equal(block(x), expected)


LAYERS = {
    "layer must be a SparseMoE, got a Linear": lambda layer: nn.Linear(2, 2),
    r"the layer: SparseMoE\(capacity_factor=1.5": lambda layer: setattr(layer, "capacity_factor", 1.5),
    r"router: TopKRouter\(.*renormalize=False.*not TopKRouter\(.*renormalize=True": lambda layer: setattr(
        layer.router, "renormalize", False
    ),
    r"experts: FFNExperts\(.*geglu.* not FFNExperts\(.*swiglu": lambda layer: setattr(
        layer.experts, "activation", "geglu"
    ),
    "shared.weight": lambda layer: setattr(layer, "shared", nn.Linear(DIM, DIM)),
    "experts.0.up_proj": lambda layer: setattr(layer, "experts", nn.Sequential(layer.experts)),
}


@pytest.mark.parametrize("message", LAYERS)
def test_other_layers_are_not_written_into_a_block(message):
    block = _block("mixtral")
    layer = from_transformers(block)
    before = copy.deepcopy(block.state_dict())
    layer = LAYERS[message](layer) or layer
    with pytest.raises(ValueError, match=message):
        to_transformers(layer, block)
    assert all(torch.equal(tensor, before[name]) for name, tensor in block.state_dict().items())


def test_layers_are_written_into_blocks_of_their_sizes_and_implementations_do_not_matter():
    block = _block("mixtral")
    layer = from_transformers(block, impl="reference")
    assert to_transformers(layer, block) is block
    with pytest.raises(ValueError, match=r"layer must be what the block becomes .*experts.down_proj: \(4, 32, 24\)"):
        to_transformers(layer, _block("mixtral", intermediate_size=20))


@pytest.mark.parametrize(("groups", "chosen"), [(2, 1), (2, 2), (1, 1)])
@pytest.mark.parametrize("top_k", [1, 2])
@pytest.mark.parametrize("normalized", [True, False])
def test_groups_of_deepseek_v3_are_converted_and_swapped(groups, chosen, top_k, normalized):
    settings = {"n_routed_experts": 4, "n_group": groups, "topk_group": chosen, "num_experts_per_tok": top_k}
    model = _model("deepseek_v3", **settings, norm_topk_prob=normalized, routed_scaling_factor=2.5)
    block, x = _blocks(model)[0], torch.randn(2, 9, DIM)
    expected = block(x)
    assert relative_error(from_transformers(block)(x).output, expected) <= 1e-5
    with swap_moe_blocks_(model):
        assert relative_error(block(x), expected) <= 1e-5


@pytest.mark.parametrize("bias", [True, False])
def test_lfm2_divides_by_the_sum_and_its_epsilon_with_and_without_a_bias(bias):
    block, x = _block("lfm2_moe", use_expert_bias=bias), torch.rand(2, 9, DIM)
    with torch.no_grad():
        block.gate.weight.copy_(-block.gate.weight.abs() * 4)  # scores so small that the epsilon shows
    layer = from_transformers(block)
    assert relative_error(layer(x).output, block(x)) <= 1e-5
    layer.router.epsilon = 0.0
    assert relative_error(layer(x).output, block(x)) > 1e-5


@pytest.mark.parametrize(("groups", "chosen", "top_k"), [(2, 1, 2), (2, 1, 1), (4, 2, 2), (4, 3, 3), (2, 2, 3)])
def test_groups_of_deepseek_v2_are_ranked_by_their_best_expert(groups, chosen, top_k):
    settings = {"n_routed_experts": 4, "n_group": groups, "topk_group": chosen, "num_experts_per_tok": top_k}
    _assert_converted_and_swapped(
        _model("deepseek_v2", **settings, topk_method="group_limited_greedy", routed_scaling_factor=2.5)
    )


@pytest.mark.parametrize("bias", [True, False])
def test_latent_experts_of_nemotron_h_are_converted_and_swapped(bias):
    model = _model("nemotron_h", moe_latent_size=16, mlp_bias=bias)
    _assert_converted_and_swapped(model)
    assert isinstance(_blocks(model)[0].fc1_latent_proj, nn.Linear)


@pytest.mark.parametrize("identity", [0, 1, 5])
def test_identity_experts_of_longcat_are_converted_and_swapped(identity):
    _assert_converted_and_swapped(_model("longcat_flash", zero_expert_num=identity, moe_topk=3))


@pytest.mark.parametrize("top_k", [1, 2])
def test_input_gates_of_llama4_are_converted_and_swapped(top_k):
    _assert_converted_and_swapped(_model("llama4", num_experts_per_tok=top_k))


def _assert_converted_and_swapped(model: nn.Module) -> None:
    block = _blocks(model)[0]
    layer = from_transformers(block)
    theirs = torch.randn(3, 17, DIM, requires_grad=True)
    mine = theirs.detach().clone().requires_grad_()
    expected, output = _output(block, theirs.clone()), layer(mine).output
    weight = torch.randn_like(expected)
    (expected_gradient,) = torch.autograd.grad((expected * weight).sum(), theirs)
    (gradient,) = torch.autograd.grad((output * weight).sum(), mine)
    assert relative_error(output, expected) <= 1e-5
    assert relative_error(gradient, expected_gradient) <= 1e-5
    to_transformers(layer, block)
    with swap_moe_blocks_(model):
        assert relative_error(_output(block, theirs.detach().clone()), expected) <= 1e-5
    assert torch.equal(_output(block, theirs.detach().clone()), expected)


def test_phimoe_is_understood_in_evaluation_only():
    """In training its sparse mixer samples experts."""
    model = _model("phimoe")
    block, x = _blocks(model)[0], torch.randn(2, 9, DIM)
    layer = from_transformers(block)
    with pytest.raises(ValueError, match="sparse mixer of PhiMoE is understood in evaluation only"):
        layer.train()(x)
    block.train()
    torch.manual_seed(5)
    expected = block(x.clone())
    with swap_moe_blocks_(model):
        torch.manual_seed(5)
        assert relative_error(block(x.clone()), expected) <= 1e-5


def test_tokens_that_are_not_finite_spoil_their_own_output_only():
    for family in ("llama4", "longcat_flash", "phimoe", "deepseek_v2", "nemotron_h", "lfm2_moe"):
        x = torch.randn(5, DIM)
        layer = from_transformers(_block(family))
        expected = layer(x).output
        x[2, 3] = torch.nan
        output = layer(x).output
        assert output[2].isnan().all(), family
        rest = [0, 1, 3, 4]
        assert relative_error(output[rest], expected[rest]) <= 1e-6, family


def test_quantised_weights_are_refused():
    block = _block("mixtral")
    block.experts.down_proj = nn.Parameter(block.experts.down_proj.data.to(torch.float8_e4m3fn), requires_grad=False)
    with pytest.raises(ValueError, match=r"got experts.down_proj of torch.float8_e4m3fn: dequantise them first"):
        from_transformers(block)


REFUSED = {
    "topk_groups=1 groups of 2 experts hold fewer than top_k=3": (
        "deepseek_v2",
        {"topk_method": "group_limited_greedy", "n_group": 2, "topk_group": 1, "num_experts_per_tok": 3},
    ),
    "gate.topk_method='noaux_tc'": ("deepseek_v2", {"topk_method": "noaux_tc"}),
    "groups of at least 2 experts each, got 4 experts with gate.num_group=4": (
        "deepseek_v3",
        {"n_group": 4, "topk_group": 2},
    ),
    "gate.norm_min=0.5": ("ernie4_5_moe", {"moe_norm_min": 0.5}),
    "with jitter_noise=0.1": ("minimax_m2", {"router_jitter_noise": 0.1}),
}


@pytest.mark.parametrize("message", REFUSED)
def test_rules_that_are_not_understood_are_refused_by_name(message):
    family, settings = REFUSED[message]
    model = _model(family, **settings)
    with pytest.raises(ValueError, match=message):
        from_transformers(_blocks(model)[0])
    with pytest.raises(ValueError, match=message):
        swap_moe_blocks_(model)
