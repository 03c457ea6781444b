"""Blocks of ``transformers`` as layers: the same output, the same gradients, the same balancing loss, or a refusal."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import MixtralConfig, Qwen2MoeConfig, Qwen3MoeConfig
from transformers.activations import ACT2FN
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock, load_balancing_loss_func
from transformers.models.qwen2_moe.modeling_qwen2_moe import Qwen2MoeSparseMoeBlock
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeModel, Qwen3MoeSparseMoeBlock

from moekit import load_balancing_loss
from moekit.interop import from_transformers
from moekit.interop.transformers._forms import FORMS
from tests.moekit import transformers_blocks
from tests.oracles import assert_close, naive_experts, naive_top_k, relative_error, stacked_expert

DIM, HIDDEN, EXPERTS = 16, 24, 8
# The blocks take their softmax in float32 whatever the dtype, so float64 agrees to 6e-8 times a few.
PARITY = {torch.float32: 1e-5, torch.float64: 1e-6}


def _block(name: str, top_k: int = 2, dtype: torch.dtype = torch.float32, **options) -> nn.Module:
    if name == "mixtral":
        config = MixtralConfig(
            hidden_size=DIM, intermediate_size=HIDDEN, num_local_experts=EXPERTS, num_experts_per_tok=top_k, **options
        )
        block: nn.Module = MixtralSparseMoeBlock(config)
    else:
        sizes = {"hidden_size": DIM, "moe_intermediate_size": HIDDEN, "num_experts": EXPERTS}
        settings = {"num_experts_per_tok": top_k, "norm_topk_prob": name.endswith("normalised")}
        if name.startswith("qwen2"):
            config = Qwen2MoeConfig(**sizes, **settings, shared_expert_intermediate_size=20, **options)
            block = Qwen2MoeSparseMoeBlock(config)
        else:
            block = Qwen3MoeSparseMoeBlock(Qwen3MoeConfig(**sizes, **settings, **options))
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.3)
    return block.to(dtype)


BLOCKS = ["mixtral", "qwen2", "qwen2 normalised", "qwen3 normalised", "qwen3"]


def _renormalises(name: str) -> bool:
    return name == "mixtral" or name.endswith("normalised")


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("top_k", [1, 2, 8])
@pytest.mark.parametrize("dtype", list(PARITY))
@pytest.mark.parametrize("impl", ["reference", "torch"])
def test_output_and_all_gradients_are_those_of_the_block(name, top_k, dtype, impl):
    block = _block(name, top_k, dtype)
    moe = from_transformers(block, impl=impl)
    theirs = torch.randn(3, 11, DIM, dtype=dtype, requires_grad=True)
    mine = theirs.detach().clone().requires_grad_()
    weight = torch.randn(3, 11, DIM, dtype=dtype)
    expected, output = block(theirs), moe(mine).output
    (expected * weight).sum().backward()
    (output * weight).sum().backward()
    assert output.dtype == dtype
    assert relative_error(output, expected) <= PARITY[dtype]
    pairs = {
        "x": (mine.grad, theirs.grad),
        "gate": (moe.router.gate.layers[0].weight.grad, block.gate.weight.grad),
        "up": (moe.experts.up_proj.grad, block.experts.gate_up_proj.grad),
        "down": (moe.experts.down_proj.grad, block.experts.down_proj.grad),
    }
    if moe.shared is not None:
        shared = block.shared_expert
        pairs |= {
            "shared up": (
                moe.shared.up_proj.weight.grad,
                torch.cat([shared.gate_proj.weight.grad, shared.up_proj.weight.grad]),
            ),
            "shared down": (moe.shared.down_proj.weight.grad, shared.down_proj.weight.grad),
            "shared gate": (moe.shared.gate.weight.grad, block.shared_expert_gate.weight.grad),
        }
    for key, (a, b) in pairs.items():
        if key == "gate" and top_k == 1 and _renormalises(name):
            # A single gate divided by itself is constant: the exact gradient is zero, the block's is rounding.
            assert a is None or not a.any()
            assert b.abs().max() <= 1e-5
        else:
            assert relative_error(a, b) <= PARITY[dtype], key


@pytest.mark.parametrize("name", ["mixtral", "qwen3 normalised", "qwen3"])
@pytest.mark.parametrize("impl", ["reference", "torch"])
def test_output_is_the_loop_over_tokens(name, impl):
    block = _block(name, dtype=torch.float64)
    x = torch.randn(9, DIM, dtype=torch.float64)
    gates, ids = naive_top_k(x @ block.gate.weight.T, 2, renormalize=_renormalises(name))
    expert = stacked_expert(block.experts.gate_up_proj, block.experts.down_proj, None, None, "swiglu")
    assert_close(from_transformers(block, impl=impl)(x).output, naive_experts(x, gates, ids, None, expert, DIM))


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_balancing_loss_is_theirs_divided_by_top_k(top_k):
    moe = from_transformers(_block("qwen3", top_k))
    logits, stats = [], []
    for _ in range(3):  # three layers: theirs concatenates the logits, ours adds the statistics
        x = torch.randn(2, 13, DIM)
        logits.append(moe.route(x).logits)
        stats.append(moe(x).stats)
    theirs = load_balancing_loss_func(tuple(logits), EXPERTS, top_k)
    mine = load_balancing_loss(sum(stats)) * top_k
    assert relative_error(mine, theirs) <= 1e-6


def test_the_layer_takes_copies_device_dtype_and_mode_of_the_block():
    block = _block("qwen2", dtype=torch.bfloat16).eval()
    moe = from_transformers(block)
    assert not moe.training
    assert {p.dtype for p in moe.parameters()} == {torch.bfloat16}
    x = torch.randn(1, 5, DIM, dtype=torch.bfloat16)
    before = moe(x).output
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.zero_()
    assert torch.equal(moe(x).output, before)
    assert before.any()


def test_each_part_takes_its_own_dtype_and_freezing():
    block = _block("qwen2", dtype=torch.bfloat16)
    block.gate.float().requires_grad_(False)
    block.shared_expert.requires_grad_(False)
    moe = from_transformers(block)
    assert {p.dtype for p in moe.router.parameters()} == {torch.float32}
    assert torch.equal(moe.router.gate.layers[0].weight, block.gate.weight)
    frozen = {name for name, parameter in moe.named_parameters() if not parameter.requires_grad}
    assert frozen == {"router.gate.layers.0.weight", "shared.up_proj.weight", "shared.down_proj.weight"}


def test_large_blocks_without_storage_convert_and_no_random_numbers_are_drawn_for_the_check():
    with torch.device("meta"):
        block = Qwen3MoeSparseMoeBlock(Qwen3MoeConfig(num_experts=128, num_experts_per_tok=8))
    moe = from_transformers(block)
    assert {p.device.type for p in moe.parameters()} == {"meta"}
    assert moe.experts.up_proj.shape == block.experts.gate_up_proj.shape
    state = torch.get_rng_state()
    from_transformers(block)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", ["mixtral", "qwen2"])
@pytest.mark.parametrize("hidden_act", ["gelu", "gelu_python", "gelu_pytorch_tanh", "gelu_new"])
def test_gelu_and_its_tanh_form_are_converted(name, hidden_act):
    block, x = _block(name, hidden_act=hidden_act), torch.randn(1, 7, DIM)
    assert relative_error(from_transformers(block)(x).output, block(x)) <= PARITY[torch.float32]


@pytest.mark.parametrize("hidden_act", ["relu", "quick_gelu"])
def test_other_activations_are_refused(hidden_act):
    with pytest.raises(ValueError, match=r"block must use an activation of moekit .*, got experts\.act_fn="):
        from_transformers(_block("qwen3", hidden_act=hidden_act))
    block = _block("qwen2")
    block.shared_expert.act_fn = ACT2FN[hidden_act]
    with pytest.raises(ValueError, match=r"block must use an activation of moekit .*, got shared_expert\.act_fn="):
        from_transformers(block)


def test_the_shared_expert_may_have_an_activation_of_its_own():
    block, x = _block("qwen2"), torch.randn(1, 7, DIM)
    block.shared_expert.act_fn = nn.GELU()
    assert relative_error(from_transformers(block)(x).output, block(x)) <= PARITY[torch.float32]


def test_a_block_of_a_model_that_recorded_its_router_is_converted():
    """Such a model leaves hooks that only record."""
    config = Qwen3MoeConfig(
        hidden_size=DIM, moe_intermediate_size=HIDDEN, num_experts=EXPERTS, num_hidden_layers=1, vocab_size=8,
        num_attention_heads=2, num_key_value_heads=2, head_dim=8,
    )  # fmt: skip
    model = Qwen3MoeModel(config).eval()
    model(torch.tensor([[1, 2, 3]]), output_router_logits=True)
    block, x = model.layers[0].mlp, torch.randn(1, 5, DIM)
    assert block.gate._forward_hooks
    assert relative_error(from_transformers(block)(x).output, block(x)) <= PARITY[torch.float32]


def test_what_is_no_block_is_refused():
    with pytest.raises(ValueError, match=r"block must be an nn\.Module, got a str"):
        from_transformers("mixtral")
    message = (
        r"got a Linear of torch.*, unlike a Mixtral.* without gate.weight, experts.gate_up_proj, experts.down_proj"
    )
    with pytest.raises(ValueError, match=message):
        from_transformers(nn.Linear(2, 2))
    block = _block("mixtral")
    block.experts.down_proj = nn.Parameter(torch.zeros(EXPERTS, DIM, HIDDEN + 1))
    with pytest.raises(ValueError, match=r"got a MixtralSparseMoeBlock with experts.intermediate_dim=24"):
        from_transformers(block)
    block.experts.intermediate_dim = HIDDEN + 1
    with pytest.raises(
        ValueError, match=r"block must hold experts.gate_up_proj \(E, 2F, D\) of shape \(8, 50, 16\), got \(8, 48"
    ):
        from_transformers(block)
    del block.experts.gate_up_proj
    with pytest.raises(ValueError, match=r"without experts.gate_up_proj"):
        from_transformers(block)


def _wrap_gate(block):
    class Wrapped(nn.Module):
        def __init__(self, base):
            super().__init__()
            self.base = base

    block.gate = Wrapped(block.gate)


def _subclass(block):
    block.__class__ = type("MySparseMoeBlock", (type(block),), {})


def _share_weights(block):
    block.shared_expert.up_proj.weight = block.shared_expert.gate_proj.weight


class _Linear4bit(nn.Linear):
    """Stands for a quantised layer."""


CHANGES = {
    "without gate.weight with gate, a tests": _wrap_gate,
    "a MySparseMoeBlock of .*, unlike a Qwen2MoeSparseMoeBlock with gate, a transf": _subclass,
    "shared_expert_gate, a tests.*_Linear4bit": lambda b: setattr(
        b, "shared_expert_gate", _Linear4bit(DIM, 1, bias=False)
    ),
    "shared_expert_gate.bias": lambda b: setattr(b, "shared_expert_gate", nn.Linear(DIM, 1)),
    "with correction_bias": lambda b: b.register_buffer("correction_bias", torch.zeros(EXPERTS)),
    "with gate.extra": lambda b: setattr(b.gate, "extra", nn.Parameter(torch.zeros(EXPERTS))),
    "with dense": lambda b: setattr(b, "dense", nn.Linear(DIM, DIM)),
    "with routed_scaling_factor=2.5": lambda b: setattr(b, "routed_scaling_factor", 2.5),
    "with gate.top_k=9": lambda b: setattr(b.gate, "top_k", EXPERTS + 1),
    "with gate.norm_topk_prob='yes'": lambda b: setattr(b.gate, "norm_topk_prob", "yes"),
    "without experts.gate_up_proj_bias, experts.down_proj_bias": lambda b: setattr(b.experts, "has_bias", True),
    "without experts.up_proj with experts.gate_up_proj": lambda b: setattr(b.experts, "has_gate", False),
    "by norm_topk_prob whether the gates of a token .* got a Qwen2MoeSparseMoeBlock without": lambda b: delattr(
        b.gate, "norm_topk_prob"
    ),
    "with experts.is_concatenated=False": lambda b: setattr(b.experts, "is_concatenated", False),
    "with experts._is_expert_parallel=True": lambda b: setattr(b.experts, "_is_expert_parallel", True),
    "with gate.forward=": lambda b: setattr(b.gate, "forward", b.gate.forward),
    "forward_hooks on experts": lambda b: b.experts.register_forward_hook(lambda *args: None),
    "forward_pre_hooks on the block": lambda b: b.register_forward_pre_hook(lambda *args: None),
    "backward_hooks on gate": lambda b: b.gate.register_full_backward_hook(lambda *args: None),
    "with weights that share memory": _share_weights,
    "freeze both or neither": lambda b: b.shared_expert.up_proj.requires_grad_(False),
    r"must hold shared_expert.up_proj.weight \(S, D\) of shape \(20, 16\), got \(3, 16\)": lambda b: setattr(
        b.shared_expert, "up_proj", nn.Linear(DIM, 3, bias=False)
    ),
}


@pytest.mark.parametrize("message", list(CHANGES))
def test_every_change_of_a_block_is_refused_by_name(message):
    block = _block("qwen2")
    CHANGES[message](block)
    with pytest.raises(ValueError, match=message):
        from_transformers(block)


def test_parametrised_weights_are_refused():
    block = _block("qwen2")
    nn.utils.parametrizations.weight_norm(block.shared_expert.up_proj)
    with pytest.raises(ValueError, match=r"without shared_expert.up_proj.weight with .*shared_expert.up_proj.param"):
        from_transformers(block)


def test_jitter_that_would_also_reach_the_experts_is_refused():
    """In transformers it perturbs the input of the experts too, in moekit only that of the router."""
    with pytest.raises(ValueError, match=r"with jitter_noise=0\.1"):
        from_transformers(_block("mixtral", router_jitter_noise=0.1))


def _sigmoid_router(self, x):
    logits = F.linear(x.reshape(-1, self.hidden_dim), self.weight)
    scores, ids = logits.sigmoid().topk(self.top_k, dim=-1)
    return logits, scores, ids


def _doubled_in_training(self, x, _forward=MixtralSparseMoeBlock.forward):
    return _forward(self, x) * (2 if self.training else 1)


def _detached(self, x, _forward=MixtralSparseMoeBlock.forward):
    return _forward(self, x.detach()) + 0 * x


@pytest.mark.parametrize(
    ("part", "forward", "difference"),
    [
        ("gate", _sigmoid_router, "output in training"),
        ("block", _doubled_in_training, "output in training"),
        ("block", _detached, "gradient of the input in training"),
    ],
)
def test_a_class_whose_forward_follows_another_rule_is_refused(part, forward, difference, monkeypatch):
    """As another version of transformers may have it, with the same weights and settings."""
    block = _block("mixtral").eval()
    monkeypatch.setattr(type(block.gate if part == "gate" else block), "forward", forward)
    with pytest.raises(ValueError, match=f"a MixtralSparseMoeBlock whose {difference} differs by .* not understood"):
        from_transformers(block)


def _assert_equal_or_refused(model: str, name: str) -> bool:
    """Whether the block is converted."""
    block = transformers_blocks.build(model, name)
    assert block is not None, "no configuration builds it"
    try:
        moe = from_transformers(block)
    except ValueError as refusal:
        if name in str(refusal):
            return False
        raise
    theirs = torch.randn(2, 5, transformers_blocks.DIM, requires_grad=True)
    mine = theirs.detach().clone().requires_grad_()
    expected, output = copy.deepcopy(block)(theirs), moe(mine).output
    expected = (expected if isinstance(expected, torch.Tensor) else expected[0]).view(output.shape)
    weight = torch.randn_like(output)
    gradients = torch.autograd.grad((output * weight).sum(), [mine, *moe.parameters()])
    (expected_gradient,) = torch.autograd.grad((expected * weight).sum(), theirs)
    assert relative_error(output, expected) <= PARITY[torch.float32]
    assert relative_error(gradients[0], expected_gradient) <= PARITY[torch.float32]
    sizes = [sum(each.numel() for each in module.state_dict().values()) for module in (moe, block)]
    # LongCat keeps rows for its identity experts, which nothing reads.
    assert sizes[0] == sizes[1] or name == "LongcatFlashMoE"
    return True


SOME = [
    ("afmoe", "AfmoeSparseMoeBlock", "unlike a DeepseekV3MoE without gate.weight with router, expert_bias"),
    ("kolibri1", "Kolibri1SparseMoeBlock", "with the parts of a DeepseekV3MoE, but rules not known"),
    ("muse_spark", "MuseSparkMoE", "pre_expert_proj, pre_expert_norm"),
]


@pytest.mark.parametrize(("model", "name", "unknown"), SOME)
def test_other_blocks_are_refused_with_what_the_nearest_known_one_does_not_have(model, name, unknown):
    with pytest.raises(ValueError, match=r"block must be a sparse block of transf") as refusal:
        from_transformers(transformers_blocks.build(model, name))
    assert f"got a {name}" in str(refusal.value)
    assert unknown in str(refusal.value)


@pytest.mark.slow  # imports every model of transformers
def test_every_sparse_block_of_transformers_is_equal_or_refused():
    classes = transformers_blocks.block_classes()
    assert len(classes) > 30
    converted = {name for model, name in classes if _assert_equal_or_refused(model, name)}
    assert converted == set(FORMS)
