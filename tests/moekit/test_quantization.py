"""Experts in int8: what they compute, how they are saved and loaded, and that they stay integers."""

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

from moekit import FFNExperts, SparseMoE, TopKRouter
from moekit.interop import register_experts, swap_moe_blocks_
from moekit.lora import add_lora_, lora_parameters, merge_lora_, remove_lora_
from moekit.quantization import dequantize_experts_, quantize_experts_
from tests.moekit.interop_experts_cases import KINDS, experts_of, inputs_of
from tests.moekit.lora_models import Subclass, largest_allocation, trained
from tests.moekit.transformers_families import MARKS, model_of
from tests.oracles import relative_error

DIM, HIDDEN, EXPERTS = 16, 24, 4
ERROR = 0.02
"""Of a layer of small width; each of its two products has weights off by less than 0.6 %."""


def make(impl: str = "auto", dtype: torch.dtype = torch.float32, **options) -> SparseMoE:
    torch.manual_seed(0)
    experts = FFNExperts(DIM, HIDDEN, EXPERTS, **{"bias": True, "init_scale": 1.0, "impl": impl} | options)
    return SparseMoE(TopKRouter(DIM, EXPERTS, 2, impl=impl), experts, impl=impl).to(dtype)


def rows(count: int = 40, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(count, DIM, generator=torch.Generator().manual_seed(1)).to(dtype)


@pytest.mark.parametrize("impl", ["reference", "torch"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("activation", ["swiglu", "gelu", "clamped_swiglu_interleaved"])
def test_experts_compute_by_their_dequantised_weights(impl, dtype, activation):
    moe = make(impl, dtype, activation=activation)
    x = rows(dtype=dtype)
    before = moe(x).output
    assert quantize_experts_(moe) == ["experts"]
    output = moe(x).output
    assert output.dtype == dtype
    assert 0 < relative_error(output, before) < (2 * ERROR if dtype == torch.bfloat16 else ERROR)
    assert dequantize_experts_(moe) == ["experts"]
    assert type(moe.experts) is FFNExperts
    assert moe.experts.up_proj.dtype == dtype
    assert relative_error(moe(x).output, output) < (1e-2 if dtype == torch.bfloat16 else 1e-6)


@pytest.mark.parametrize("tokens", [0, 1, 3])
def test_few_tokens(tokens):
    moe = make()
    expected = moe(rows(tokens)).output
    quantize_experts_(moe)
    assert (moe(rows(tokens)).output - expected).norm() <= ERROR * expected.norm()


def test_memory_is_a_quarter_and_no_copy_of_all_experts_is_made():
    experts, dim, hidden = 32, 32, 48
    moe = SparseMoE.ffn(dim, hidden, experts, 1, activation="gelu")
    before = sum(t.nbytes for t in moe.experts.state_dict().values())
    quantize_experts_(moe)
    after = sum(t.nbytes for t in moe.experts.state_dict().values())
    scales = 4 * experts * (dim + hidden)
    assert after == before // 4 + scales
    floats = 4 * experts * dim * hidden
    model = nn.Sequential(moe)
    model.register_forward_hook(lambda module, inputs, output: output.output)
    assert largest_allocation(model, torch.randn(4, dim, requires_grad=True)) < floats / 8


def test_state_dict_is_loaded_again_and_float_checkpoints_are_quantised_on_the_way():
    plain, moe = make(), make()
    quantize_experts_(moe)
    state = moe.state_dict()
    names = ["up_proj", "up_proj_scale", "down_proj", "down_proj_scale", "up_bias", "down_bias"]
    assert sorted(name for name in state if name.startswith("experts.")) == sorted(f"experts.{name}" for name in names)
    for checkpoint in (state, plain.state_dict()):
        with torch.device("meta"):
            loaded = make()
            quantize_experts_(loaded)
        loaded.load_state_dict(checkpoint, assign=True)
        assert torch.equal(loaded(rows()).output, moe(rows()).output)
        other = make()
        quantize_experts_(other)
        other.experts.reset_parameters()
        assert not other.experts.up_proj.any()
        other.load_state_dict(checkpoint)
        assert torch.equal(other(rows()).output, moe(rows()).output)


def test_casts_leave_integers_and_scales():
    moe = make()
    quantize_experts_(moe)
    moe.bfloat16()
    assert (moe.experts.up_proj.dtype, moe.experts.up_proj_scale.dtype) == (torch.int8, torch.float32)
    assert moe.experts.float_dtype == torch.bfloat16
    assert moe(rows(dtype=torch.bfloat16)).output.dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        assert moe.float()(rows()).output.dtype == torch.bfloat16


def test_compiled_whole_copied_and_shown():
    moe = make()
    quantize_experts_(moe)
    x, expected = rows(), moe(rows()).output
    compiled = torch.compile(lambda x: moe(x).output, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), expected)
    assert torch.equal(copy.deepcopy(moe)(x).output, expected)
    add_lora_(moe, rank=2)
    assert torch.equal(pickle.loads(pickle.dumps(moe))(x).output, expected)
    assert "bias=True, impl='auto', bits=8" in repr(moe)


def test_adapters_are_trained_beside_integers():
    moe = make()
    quantize_experts_(moe)
    x, before = rows(), moe(rows()).output
    add_lora_(moe, rank=3)
    assert torch.equal(moe(x).output, before)
    trained(moe)
    x = x.requires_grad_()
    output = moe(x).output
    gradients = torch.autograd.grad(output.square().sum(), [x, *lora_parameters(moe)])
    with pytest.raises(ValueError, match="must have plain floating weights to be merged, got a Tensor of"):
        merge_lora_(moe)
    floating = copy.deepcopy(moe)
    lora = floating.experts.lora
    remove_lora_(floating)
    dequantize_experts_(floating)
    add_lora_(floating, rank=3)
    floating.experts.lora.load_state_dict(lora.state_dict())
    expected = floating(x).output
    assert relative_error(output, expected) < 1e-5
    expected_gradients = torch.autograd.grad(expected.square().sum(), [x, *lora_parameters(floating)])
    for one, other in zip(gradients, expected_gradients, strict=True):
        assert relative_error(one, other) < 1e-5
    with pytest.raises(ValueError, match="must have the class that quantize_experts_ gave them, got a AdaptedInt8FFN"):
        dequantize_experts_(moe)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_stacked_experts_of_transformers_of_every_layout(kind):
    register_experts()
    experts, inputs = experts_of(kind), inputs_of()
    experts.config._experts_implementation = "moekit"
    before = experts(*inputs)
    quantize_experts_(experts)
    output = experts(*inputs)
    assert 0 < relative_error(output, before) < ERROR
    assert not any(p.is_floating_point() and p.ndim == 3 for p in experts.state_dict().values())
    dequantize_experts_(experts)
    assert type(experts) is kind
    assert relative_error(experts(*inputs), output) < 1e-5


class TestModels:
    """Whole models of transformers."""

    pytestmark = MARKS

    @pytest.mark.parametrize("swapped", [False, True])
    @pytest.mark.parametrize("family", ["mixtral", "gpt_oss"])
    def test_models_generate_and_take_adapters(self, family, swapped):
        model, prompt = model_of(family), torch.arange(6)[None]
        if swapped:
            swap_moe_blocks_(model)
        with torch.no_grad():
            expected = model(prompt).logits
        names = quantize_experts_(model)
        assert len(names) == len(model.model.layers)
        with torch.no_grad():
            output = model(prompt).logits
        assert 0 < relative_error(output, expected) < 3 * ERROR
        model.generate(prompt, attention_mask=prompt >= 0, max_new_tokens=2, do_sample=False)
        add_lora_(model, rank=2)
        assert torch.equal(model(prompt).logits, output)
        model(prompt, labels=prompt).loss.backward()
        assert {name for name, p in model.named_parameters() if p.grad is not None} == {
            f"{name}.lora.{each}" for name in names for each in ("up_a", "up_b", "down_a", "down_b")
        }


def adapted() -> SparseMoE:
    moe = make()
    add_lora_(moe)
    return moe


def already() -> SparseMoE:
    moe = make()
    quantize_experts_(moe)
    return moe


@pytest.mark.parametrize(
    ("build", "options", "message"),
    [
        (make, {"bits": 4}, "bits must be 8, the only width there is, got 4"),
        (make, {"where": "router"}, "must hold FFNExperts or stacked experts of transformers, got 'router'"),
        (adapted, {}, r"experts 'experts' must have no adapters yet: quantise them before add_lora_"),
        (already, {}, "experts 'experts' must not be quantised yet, but are"),
        (lambda: Subclass(4, 4, 2), {}, "experts '' must be FFNExperts, got a Subclass"),
        (lambda: make(recompute="none"), {}, "recompute of experts 'experts' must be \"activation\""),
    ],
)
def test_what_cannot_be_quantised_is_refused(build, options, message):
    with pytest.raises(ValueError, match=message):
        quantize_experts_(build(), **options)


def test_other_refusals():
    with pytest.raises(ValueError, match="must hold quantised experts, got a SparseMoE without any"):
        dequantize_experts_(make())
    moe = make()
    quantize_experts_(moe)
    with pytest.raises(ValueError, match="recompute must be"):
        moe.experts.recompute = "all"
    plan, gates = moe.plan(moe.route(rows(3))), torch.ones(3, 2)
    with pytest.raises(ValueError, match="x must be of a floating dtype, got"):
        moe.experts(torch.ones(3, DIM, dtype=torch.int64), plan, gates)
    integers = make()
    integers.experts.up_proj = nn.Parameter(integers.experts.up_proj.to(torch.int8), requires_grad=False)
    with pytest.raises(ValueError, match="must have plain floating weights to be quantised, got Parameter of"):
        quantize_experts_(integers)
