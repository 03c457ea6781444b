"""Which activation of transformers' experts is recognised, and runs fused."""

from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers.activations import ACT2FN
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts
from transformers.models.mixtral.modeling_mixtral import MixtralExperts

from moekit.interop import fused_activation, register_experts
from moekit.interop.transformers import _experts as experts_backend
from moekit.interop.transformers._gates import _NAMES, _function_name
from moekit_kernels.activations import ACTIVATIONS
from tests.moekit.interop_experts_cases import (
    HIDDEN,
    TOKENS,
    TOP_K,
    compare,
    experts_of,
    inputs_of,
    results_of,
)
from tests.oracles import assert_close, relative_error


@pytest.fixture(autouse=True)
def _registered():
    register_experts()


def test_functions_stand_for_the_classes_and_functions_they_are_listed_for():
    x = torch.linspace(-6, 6, 101, dtype=torch.float64)
    for listed, name in _NAMES.items():
        act = listed() if isinstance(listed, type) else listed
        assert_close(act(x), ACTIVATIONS[name](x))
    assert _function_name(nn.GELU()) == "gelu"
    assert _function_name(nn.GELU(approximate="tanh")) == "gelu_tanh"
    assert {_function_name(ACT2FN[name]) for name in ("mish", "quick_gelu", "leaky_relu", "linear")} == {""}


@pytest.mark.parametrize(
    ("act", "activation"),
    [
        ("silu", "swiglu"),
        ("swish", "swiglu"),
        ("gelu", "geglu"),
        ("gelu_pytorch_tanh", "geglu_tanh"),
        ("gelu_new", "geglu_tanh"),
        ("relu", None),
        ("mish", None),
    ],
)
def test_which_activations_run_fused(act, activation):
    experts = experts_of(MixtralExperts, hidden_act=act)
    assert fused_activation(experts) == activation
    with patch.object(experts_backend, "_unfused", side_effect=AssertionError("unfused")):
        experts.config._experts_implementation = "moekit"
        if activation is None:
            with pytest.raises(AssertionError, match="unfused"):
                experts(*inputs_of())
        else:
            experts(*inputs_of())


def _with_gate(gate, **attributes):
    """Experts of a class of their own with this gate."""
    experts = experts_of(MixtralExperts)
    experts.__class__ = type("Experts", (MixtralExperts,), {"_apply_gate": gate})
    for name, value in attributes.items():
        setattr(experts, name, value)
    return experts


def _own_swiglu(self, pre):
    gate, up = pre.chunk(2, dim=-1)
    return gate * gate.sigmoid() * up


def _interleaved_geglu(self, pre):
    return F.gelu(pre[..., ::2]) * pre[..., 1::2]


def test_a_gate_is_recognised_by_its_numbers_whoever_wrote_it():
    assert fused_activation(_with_gate(_own_swiglu)) == "swiglu"
    assert fused_activation(_with_gate(_interleaved_geglu)) == "geglu_interleaved"
    assert fused_activation(_with_gate(lambda self, pre: self.act_fn(pre[..., HIDDEN:]) * pre[..., :HIDDEN])) is None


def _clamped(self, pre):
    gate, up = pre.chunk(2, dim=-1)
    return self.act_fn(gate.clamp(max=self.limit)) * up.clamp(-self.limit, self.limit)


def _clamped_after(self, pre):
    gate, up = pre.chunk(2, dim=-1)
    return self.act_fn(gate).clamp(max=self.limit) * up.clamp(-self.limit, self.limit)


def test_clamped_gates_are_recognised_with_their_settings():
    assert fused_activation(experts_of(GptOssExperts)) == "clamped_swiglu_interleaved"
    experts = experts_of(GptOssExperts)
    experts.alpha, experts.limit = 1.5, 3.0
    name = fused_activation(experts)
    pre = 5 * torch.randn(7, 2 * HIDDEN, dtype=torch.float64)
    assert_close(ACTIVATIONS[name](pre), experts._apply_gate(pre))
    compare(experts, *inputs_of())
    experts = _with_gate(_clamped, limit=2.0)
    assert_close(ACTIVATIONS[fused_activation(experts)](pre), experts._apply_gate(pre))
    assert fused_activation(_with_gate(_clamped_after, limit=2.0)) is None
    assert fused_activation(_with_gate(_clamped, limit=-2.0)) is None


def _rounds(self, pre):
    return _own_swiglu(self, pre.float()).to(pre.dtype)


def _clamped_far_out(self, pre):
    return _own_swiglu(self, pre).clamp(max=1e5)


def _reads_another_setting(self, pre):
    return _own_swiglu(self, pre) * self.scale


def _reads_the_rows(self, pre):
    return F.normalize(_own_swiglu(self, pre))


def _random(self, pre):
    return F.dropout(_own_swiglu(self, pre), 0.5, self.training)


def _wrong_width(self, pre):
    return pre


def _writes_its_input(self, pre):
    half = pre.shape[-1] // 2
    return pre[..., :half].clamp_(max=2.0) * pre[..., half:]


@pytest.mark.parametrize(
    "gate", [_clamped_far_out, _rounds, _reads_another_setting, _reads_the_rows, _random, _wrong_width]
)
def test_a_gate_that_is_not_understood_is_not_guessed(gate):
    assert fused_activation(_with_gate(gate, scale=1.0)) is None


@pytest.mark.parametrize("gate", [_reads_another_setting, _reads_the_rows, _writes_its_input])
def test_experts_of_an_unknown_gate_call_it(gate):
    experts, inputs = _with_gate(gate, scale=0.5), inputs_of()
    pairs = [results_of(experts, implementation, *inputs) for implementation in ("grouped_mm", "moekit")]
    for name, expected in pairs[0].items():
        assert relative_error(pairs[1][name], expected) <= 1e-5, name


def test_a_gate_set_on_the_module_and_hooks_of_its_activation_are_respected():
    experts = experts_of(MixtralExperts)
    experts._apply_gate = lambda pre: pre.chunk(2, dim=-1)[1]
    assert fused_activation(experts) is None
    experts = experts_of(MixtralExperts)
    seen = []
    handle = experts.act_fn.register_forward_hook(lambda module, args, output: seen.append(output.shape))
    assert fused_activation(experts) is None
    experts.config._experts_implementation = "moekit"
    experts(*inputs_of())
    assert seen == [(TOKENS * TOP_K, HIDDEN)]
    handle.remove()
    assert fused_activation(experts) == "swiglu"


def test_a_subclass_of_a_known_activation_is_not_taken_for_it():
    class Scaled(nn.SiLU):
        def forward(self, x):
            return 2 * super().forward(x)

    experts = experts_of(MixtralExperts)
    experts.act_fn = Scaled()
    assert fused_activation(experts) is None
    compare(experts, *inputs_of())
