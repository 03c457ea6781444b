"""Blocks of families of transformers become layers and back, or are refused by name."""

import copy

import pytest
import torch
from torch import nn

from moekit.interop import from_transformers, swap_moe_blocks_, to_transformers
from tests.moekit.transformers_families import (
    DIM,
    EXPERTS,
    FAMILIES,
    MARKS,
    block_of,
    blocks_in,
    model_of,
    output_of_block,
)
from tests.oracles import relative_error

pytestmark = [*MARKS, pytest.mark.usefixtures("quiet_transformers")]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_block_becomes_a_layer_of_the_same_output_and_gradients_and_back(family):
    block = block_of(family)
    layer = from_transformers(block)
    theirs = torch.randn(2, 9, DIM, requires_grad=True)
    mine = theirs.detach().clone().requires_grad_()
    weight = torch.randn(2, 9, DIM)
    expected, output = output_of_block(block, theirs.clone()), layer(mine).output
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
    block = block_of(family, torch.bfloat16)
    exact = copy.deepcopy(block).double()
    x = torch.randn(1, 16, DIM, dtype=torch.bfloat16)
    expected = output_of_block(exact, x.double())
    with torch.no_grad():
        theirs = relative_error(output_of_block(block, x.clone()).double(), expected)
        mine = relative_error(from_transformers(block)(x).output.double(), expected)
    assert mine <= 2 * theirs <= 4e-2


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
    block = block_of("mixtral")
    layer = from_transformers(block)
    before = copy.deepcopy(block.state_dict())
    layer = LAYERS[message](layer) or layer
    with pytest.raises(ValueError, match=message):
        to_transformers(layer, block)
    assert all(torch.equal(tensor, before[name]) for name, tensor in block.state_dict().items())


def test_layers_are_written_into_blocks_of_their_sizes_and_implementations_do_not_matter():
    block = block_of("mixtral")
    layer = from_transformers(block, impl="reference")
    assert to_transformers(layer, block) is block
    with pytest.raises(ValueError, match=r"layer must be what the block becomes .*experts.down_proj: \(4, 32, 24\)"):
        to_transformers(layer, block_of("mixtral", intermediate_size=20))


@pytest.mark.parametrize(("groups", "chosen"), [(2, 1), (2, 2), (1, 1)])
@pytest.mark.parametrize("top_k", [1, 2])
@pytest.mark.parametrize("normalized", [True, False])
def test_groups_of_deepseek_v3_are_converted_and_swapped(groups, chosen, top_k, normalized):
    settings = {"n_routed_experts": 4, "n_group": groups, "topk_group": chosen, "num_experts_per_tok": top_k}
    model = model_of("deepseek_v3", **settings, norm_topk_prob=normalized, routed_scaling_factor=2.5)
    block, x = blocks_in(model)[0], torch.randn(2, 9, DIM)
    expected = block(x)
    assert relative_error(from_transformers(block)(x).output, expected) <= 1e-5
    with swap_moe_blocks_(model):
        assert relative_error(block(x), expected) <= 1e-5


@pytest.mark.parametrize("bias", [True, False])
def test_lfm2_divides_by_the_sum_and_its_epsilon_with_and_without_a_bias(bias):
    block, x = block_of("lfm2_moe", use_expert_bias=bias), torch.rand(2, 9, DIM)
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
        model_of("deepseek_v2", **settings, topk_method="group_limited_greedy", routed_scaling_factor=2.5)
    )


@pytest.mark.parametrize("bias", [True, False])
def test_latent_experts_of_nemotron_h_are_converted_and_swapped(bias):
    model = model_of("nemotron_h", moe_latent_size=16, mlp_bias=bias)
    _assert_converted_and_swapped(model)
    assert isinstance(blocks_in(model)[0].fc1_latent_proj, nn.Linear)


@pytest.mark.parametrize("identity", [0, 1, 5])
def test_identity_experts_of_longcat_are_converted_and_swapped(identity):
    _assert_converted_and_swapped(model_of("longcat_flash", zero_expert_num=identity, moe_topk=3))


@pytest.mark.parametrize("top_k", [1, 2])
def test_input_gates_of_llama4_are_converted_and_swapped(top_k):
    _assert_converted_and_swapped(model_of("llama4", num_experts_per_tok=top_k))


def _assert_converted_and_swapped(model: nn.Module) -> None:
    block = blocks_in(model)[0]
    layer = from_transformers(block)
    theirs = torch.randn(3, 17, DIM, requires_grad=True)
    mine = theirs.detach().clone().requires_grad_()
    expected, output = output_of_block(block, theirs.clone()), layer(mine).output
    weight = torch.randn_like(expected)
    (expected_gradient,) = torch.autograd.grad((expected * weight).sum(), theirs)
    (gradient,) = torch.autograd.grad((output * weight).sum(), mine)
    assert relative_error(output, expected) <= 1e-5
    assert relative_error(gradient, expected_gradient) <= 1e-5
    to_transformers(layer, block)
    with swap_moe_blocks_(model):
        assert relative_error(output_of_block(block, theirs.detach().clone()), expected) <= 1e-5
    assert torch.equal(output_of_block(block, theirs.detach().clone()), expected)


def _deepseek_v4_block(layer: int, **settings: object) -> nn.Module:
    configuration = pytest.importorskip("transformers.models.deepseek_v4.configuration_deepseek_v4")
    modeling = pytest.importorskip("transformers.models.deepseek_v4.modeling_deepseek_v4")
    sizes = {"hidden_size": DIM, "moe_intermediate_size": 8, "num_local_experts": 6, "num_experts_per_tok": 2}
    layers = {"num_hidden_layers": 2, "mlp_layer_types": ["hash_moe", "moe"], "vocab_size": 30}
    config = configuration.DeepseekV4Config(**sizes, **layers, swiglu_limit=0.5, **settings)
    block = modeling.DeepseekV4SparseMoeBlock(config, layer)
    with torch.no_grad():
        for tensor in [*block.parameters(), *block.buffers()]:
            tensor.normal_(std=0.5) if tensor.is_floating_point() else tensor.random_(6)
    return block


def test_deepseek_v4_scores_by_sqrt_softplus_and_clamps_all_its_experts():
    block, x = _deepseek_v4_block(1), torch.randn(2, 30, DIM)
    layer = from_transformers(block)
    assert layer.router.scoring == "sqrt_softplus"
    mine, theirs = (x.clone().requires_grad_() for _ in range(2))
    output, expected = layer(mine).output, block(theirs)
    assert relative_error(output, expected) <= 1e-5
    (gradient,), (expected_gradient,) = (
        torch.autograd.grad(each.square().sum(), leaf) for each, leaf in ((output, mine), (expected, theirs))
    )
    assert relative_error(gradient, expected_gradient) <= 1e-5
    with swap_moe_blocks_(nn.Sequential(block)):
        assert relative_error(block(x), expected) <= 1e-5
    assert torch.equal(block(x), expected)
    empty = _deepseek_v4_block(1)
    assert torch.equal(to_transformers(layer, empty)(x), expected)


def test_deepseek_v4_with_a_hash_or_another_score_is_refused():
    with pytest.raises(ValueError, match=r"with gate\.tid2eid, is_hash=True"):
        from_transformers(_deepseek_v4_block(0))
    with pytest.raises(ValueError, match=r"score experts by sqrtsoftplus, .*, got gate\.score_fn=Sigmoid"):
        from_transformers(_deepseek_v4_block(1, scoring_func="sigmoid"))


def test_phimoe_draws_the_same_experts_in_training():
    model = model_of("phimoe")
    block, x = blocks_in(model)[0], torch.randn(2, 90, DIM)
    block.router.router_jitter_noise = 0.5
    layer = from_transformers(block).train()
    block.train()
    torch.manual_seed(5)
    expected = block(x.clone())
    torch.manual_seed(5)
    assert relative_error(layer(x).output, expected) <= 1e-5
    with swap_moe_blocks_(model):
        torch.manual_seed(5)
        assert torch.equal(block(x.clone()), expected)


def test_phimoe_with_noise_on_its_tokens_is_understood_in_evaluation_only():
    block, x = blocks_in(model_of("phimoe"))[0], torch.randn(2, 9, DIM)
    block.input_jitter_noise = block.router.input_jitter_noise = 0.1
    layer = from_transformers(block)
    assert relative_error(layer(x).output, block(x.clone())) <= 1e-5
    with pytest.raises(ValueError, match="block with input_jitter_noise above 0 is understood in evaluation only"):
        layer.train()(x)


def test_tokens_that_are_not_finite_spoil_their_own_output_only():
    for family in ("llama4", "longcat_flash", "phimoe", "deepseek_v2", "nemotron_h", "lfm2_moe"):
        x = torch.randn(5, DIM)
        layer = from_transformers(block_of(family))
        expected = layer(x).output
        x[2, 3] = torch.nan
        output = layer(x).output
        assert output[2].isnan().all(), family
        rest = [0, 1, 3, 4]
        assert relative_error(output[rest], expected[rest]) <= 1e-6, family


def test_quantised_weights_are_refused():
    block = block_of("mixtral")
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
    model = model_of(family, **settings)
    with pytest.raises(ValueError, match=message):
        from_transformers(blocks_in(model)[0])
    with pytest.raises(ValueError, match=message):
        swap_moe_blocks_(model)
