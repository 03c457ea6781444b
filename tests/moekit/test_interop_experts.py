"""``experts_implementation="moekit"``: the output and gradients of eager, fused where the activation is recognised."""

import copy
import subprocess
import sys
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import GptOssConfig, MixtralConfig, NemotronHConfig
from transformers.activations import ACT2FN
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS, use_experts_implementation
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts
from transformers.models.mixtral.modeling_mixtral import MixtralExperts, MixtralForCausalLM
from transformers.models.nemotron_h.modeling_nemotron_h import NemotronHExperts

from moekit.inspect import record_routing
from moekit.interop import _transformers_experts, fused_activation, register_experts
from moekit.interop._transformers_gates import _NAMES, _function_name
from moekit_kernels.activations import ACTIVATIONS
from tests.oracles import assert_close, relative_error
from tests.test_import import ROOT

DIM, HIDDEN, EXPERTS, TOP_K, TOKENS = 16, 24, 5, 2, 11


@pytest.fixture(autouse=True)
def _registered():
    register_experts()


@use_experts_implementation(has_bias=True, has_post_expert_norm=True)
class NormedExperts(nn.Module):
    """Experts with biases, and a norm after each that makes something of zeros."""

    def __init__(self, config):
        super().__init__()
        self.num_experts = EXPERTS
        self.gate_up_proj = nn.Parameter(torch.empty(EXPERTS, 2 * HIDDEN, DIM))
        self.gate_up_proj_bias = nn.Parameter(torch.empty(EXPERTS, 2 * HIDDEN))
        self.down_proj = nn.Parameter(torch.empty(EXPERTS, DIM, HIDDEN))
        self.down_proj_bias = nn.Parameter(torch.empty(EXPERTS, DIM))
        self.post_expert_norm = nn.LayerNorm(DIM)

    def _apply_gate(self, gate_up):
        gate, up = gate_up.chunk(2, dim=-1)
        return F.softplus(gate) * up

    def forward(self, hidden_states, top_k_index, top_k_weights):
        output = torch.zeros_like(hidden_states)
        for token, (ids, weights) in enumerate(zip(top_k_index.tolist(), top_k_weights, strict=True)):
            for expert, weight in zip(ids, weights, strict=True):
                if expert < self.num_experts:
                    pre = F.linear(hidden_states[token], self.gate_up_proj[expert], self.gate_up_proj_bias[expert])
                    y = F.linear(self._apply_gate(pre), self.down_proj[expert], self.down_proj_bias[expert])
                    output[token] += self.post_expert_norm(y) * weight
        return output


def _config(kind, **options):
    sizes = {"hidden_size": DIM, "intermediate_size": HIDDEN, "num_local_experts": EXPERTS}
    if kind is NemotronHExperts:
        sizes = {"hidden_size": DIM, "moe_intermediate_size": HIDDEN, "n_routed_experts": EXPERTS}
        return NemotronHConfig(**sizes, **options)
    return GptOssConfig(**sizes) if kind is GptOssExperts else MixtralConfig(**sizes, **options)


def _experts(kind, dtype=torch.float32, **options):
    torch.manual_seed(0)
    experts = kind(_config(kind, **options)).to(dtype)
    for parameter in experts.parameters():
        nn.init.normal_(parameter, std=0.3)
    return experts


def _inputs(dtype=torch.float32, ids=None, gates_dtype=None):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(TOKENS, DIM, generator=generator).to(dtype).requires_grad_()
    gates = torch.rand(TOKENS, TOP_K, generator=generator).to(gates_dtype or dtype).requires_grad_()
    if ids is None:
        ids = torch.rand(TOKENS, EXPERTS, generator=generator).topk(TOP_K).indices
    return x, ids, gates


def _run(experts, implementation, x, ids, gates):
    """The output and every gradient by name."""
    experts.config._experts_implementation = implementation
    leaves = {"x": x, "gates": gates, **dict(experts.named_parameters())}
    output = experts(x, ids, gates)
    weight = torch.randn(output.shape, generator=torch.Generator().manual_seed(2)).to(output.dtype)
    trained = {name: leaf for name, leaf in leaves.items() if leaf.requires_grad}
    gradients = torch.autograd.grad((output * weight).sum(), list(trained.values()))
    return {"output": output.detach(), **dict(zip(trained, gradients, strict=True))}


def _compare(experts, *inputs, bound=1e-5):
    expected, results = _run(experts, "eager", *inputs), _run(experts, "moekit", *inputs)
    assert results.keys() == expected.keys()
    for name in expected:
        assert results[name].dtype == expected[name].dtype, name
        assert relative_error(results[name], expected[name]) <= bound, name


KINDS = [MixtralExperts, GptOssExperts, NemotronHExperts, NormedExperts]


@pytest.mark.parametrize("kind", KINDS)
def test_output_and_gradients_are_eagers(kind):
    _compare(_experts(kind), *_inputs())


@pytest.mark.parametrize("act", ["silu", "swish", "gelu", "gelu_python", "gelu_pytorch_tanh", "relu", "relu2", "mish"])
@pytest.mark.parametrize("kind", [MixtralExperts, NemotronHExperts])
def test_every_activation_of_the_configuration(kind, act):
    option = {"hidden_act": act} if kind is MixtralExperts else {"mlp_hidden_act": act}
    _compare(_experts(kind, **option), *_inputs())


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
    experts = _experts(MixtralExperts, hidden_act=act)
    assert fused_activation(experts) == activation
    with patch.object(_transformers_experts, "_unfused", side_effect=AssertionError("unfused")):
        experts.config._experts_implementation = "moekit"
        if activation is None:
            with pytest.raises(AssertionError, match="unfused"):
                experts(*_inputs())
        else:
            experts(*_inputs())


def _with_gate(gate, **attributes):
    """Experts of a class of their own with this gate."""
    experts = _experts(MixtralExperts)
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
    assert fused_activation(_experts(GptOssExperts)) == "clamped_swiglu_interleaved"
    experts = _experts(GptOssExperts)
    experts.alpha, experts.limit = 1.5, 3.0
    name = fused_activation(experts)
    pre = 5 * torch.randn(7, 2 * HIDDEN, dtype=torch.float64)
    assert_close(ACTIVATIONS[name](pre), experts._apply_gate(pre))
    _compare(experts, *_inputs())
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
    experts, inputs = _with_gate(gate, scale=0.5), _inputs()
    pairs = [_run(experts, implementation, *inputs) for implementation in ("grouped_mm", "moekit")]
    for name, expected in pairs[0].items():
        assert relative_error(pairs[1][name], expected) <= 1e-5, name


def test_a_gate_set_on_the_module_and_hooks_of_its_activation_are_respected():
    experts = _experts(MixtralExperts)
    experts._apply_gate = lambda pre: pre.chunk(2, dim=-1)[1]
    assert fused_activation(experts) is None
    experts = _experts(MixtralExperts)
    seen = []
    handle = experts.act_fn.register_forward_hook(lambda module, args, output: seen.append(output.shape))
    assert fused_activation(experts) is None
    experts.config._experts_implementation = "moekit"
    experts(*_inputs())
    assert seen == [(TOKENS * TOP_K, HIDDEN)]
    handle.remove()
    assert fused_activation(experts) == "swiglu"


def test_a_subclass_of_a_known_activation_is_not_taken_for_it():
    class Scaled(nn.SiLU):
        def forward(self, x):
            return 2 * super().forward(x)

    experts = _experts(MixtralExperts)
    experts.act_fn = Scaled()
    assert fused_activation(experts) is None
    _compare(experts, *_inputs())


@pytest.mark.parametrize("kind", KINDS)
def test_slots_of_other_ranks_are_left_out(kind):
    experts = _experts(kind)
    experts._is_expert_parallel = True
    x, ids, gates = _inputs()
    ids = ids.clone()
    ids[::3, 0] = EXPERTS
    ids[4] = EXPERTS  # a token without any
    with torch.no_grad():
        zeroed = gates.masked_fill(ids == EXPERTS, 0.0)
    # Two of the loops do not skip such ids; there the expected values are those of slots with a gate of 0.
    spare = ids.where(ids < EXPERTS, 0) if kind in (GptOssExperts, NemotronHExperts) else ids
    expected = _run(experts, "eager", x, spare, zeroed.requires_grad_())
    results = _run(experts, "moekit", x, ids, gates)
    assert not results["gates"][ids == EXPERTS].any()
    assert not results["output"][4].any()
    for name in expected:
        mine, theirs = results[name], expected[name]
        if name == "gates":
            mine, theirs = mine[ids < EXPERTS], theirs[ids < EXPERTS]
        assert relative_error(mine, theirs) <= 1e-5, name


@pytest.mark.parametrize("kind", [MixtralExperts, GptOssExperts])
def test_attributes_that_transformers_5_0_does_not_set_have_its_defaults(kind):
    experts = _experts(kind)
    for name in ("has_gate", "has_post_expert_norm", "is_concatenated", "_is_expert_parallel"):
        delattr(experts, name)
    _compare(experts, *_inputs())


def test_gates_of_all_experts_are_read_at_the_chosen_ones():
    experts, (x, ids, gates) = _experts(MixtralExperts), _inputs()
    experts.config._experts_implementation = "moekit"
    full = torch.zeros(TOKENS, EXPERTS).scatter(1, ids, gates.detach())
    assert torch.equal(experts(x, ids, full), experts(x, ids, gates))


def test_transposed_weights_are_views():
    experts = _experts(GptOssExperts)
    weights = _transformers_experts._weights(experts)
    assert weights.up_proj.data_ptr() == experts.gate_up_proj.data_ptr()
    assert weights.down_proj.data_ptr() == experts.down_proj.data_ptr()
    assert weights.up_proj.shape == (EXPERTS, 2 * HIDDEN, DIM)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("dtype", "gates_dtype", "bound"),
    [
        (torch.float64, torch.float32, 1e-12),
        (torch.float32, torch.float64, 1e-5),
        (torch.float32, torch.bfloat16, 1e-5),
        (torch.bfloat16, torch.float32, 2e-2),
        (torch.bfloat16, torch.float16, 2e-2),
        (torch.float16, torch.float32, 5e-3),
    ],
)
def test_dtypes_of_weights_and_gates(kind, dtype, gates_dtype, bound):
    experts = _experts(kind, dtype)
    x, ids, gates = _inputs(dtype, gates_dtype=gates_dtype)
    results = _run(experts, "moekit", x, ids, gates)
    # In float64, so that the roundings of eager do not count.
    exact = copy.deepcopy(experts).double()
    expected = _run(exact, "eager", x.detach().double().requires_grad_(), ids, gates.detach().double().requires_grad_())
    for name in expected:
        rounding = torch.finfo(results[name].dtype).eps
        assert relative_error(results[name].double(), expected[name]) <= max(bound, rounding), name
    assert results["output"].dtype == dtype
    assert results["gates"].dtype == gates_dtype


def test_tokens_of_another_dtype_than_the_weights_are_cast_as_grouped_mm_casts_them():
    experts, (x, ids, gates) = _experts(MixtralExperts, torch.bfloat16), _inputs()
    pairs = [_run(experts, implementation, x, ids, gates) for implementation in ("grouped_mm", "moekit")]
    assert pairs[1]["output"].dtype == torch.float32
    for name, expected in pairs[0].items():
        assert relative_error(pairs[1][name], expected) <= 2e-2, name


def test_weights_that_nothing_computes_in_are_refused():
    experts = _experts(MixtralExperts).requires_grad_(False).to(torch.float8_e4m3fn)
    experts.config._experts_implementation = "moekit"
    with pytest.raises(ValueError, match=r"bfloat16, float16, float32 or float64, got torch.float8_e4m3fn in Mixtral"):
        experts(*_inputs())


@pytest.mark.parametrize("kind", KINDS)
def test_autocast(kind):
    experts, inputs = _experts(kind), _inputs()
    expected = _run(experts, "eager", *inputs)
    with torch.autocast("cpu", torch.bfloat16):
        results = _run(experts, "moekit", *inputs)
    for name in expected:
        assert results[name].dtype == torch.float32, name
        assert relative_error(results[name], expected[name]) <= 2e-2, name
    assert relative_error(results["output"], expected["output"]) > 1e-5  # it was computed in bfloat16


@pytest.mark.parametrize("kind", KINDS)
def test_frozen_weights_get_no_gradient_and_the_input_does(kind):
    experts, inputs = _experts(kind).requires_grad_(False), _inputs()
    _compare(experts, *inputs)
    assert _run(experts, "moekit", *inputs).keys() == {"output", "x", "gates"}


@pytest.mark.parametrize("kind", KINDS)
def test_no_tokens_and_32_bit_ids(kind):
    experts = _experts(kind)
    experts.config._experts_implementation = "moekit"
    x, ids, gates = _inputs()
    assert torch.equal(experts(x, ids.int(), gates), experts(x, ids, gates))
    assert experts(x[:0], ids[:0], gates[:0]).shape == (0, DIM)


@pytest.mark.parametrize("kind", KINDS)
def test_compiled_whole(kind):
    experts, inputs = _experts(kind), _inputs()
    expected = _run(experts, "eager", *inputs)
    torch.compiler.reset()
    compiled = copy.deepcopy(experts)
    compiled.compile(fullgraph=True, backend="aot_eager")
    results = _run(compiled, "moekit", *inputs)
    for name in expected:
        assert relative_error(results[name], expected[name]) <= 1e-5, name


def test_layers_of_one_kind_are_compiled_once():
    torch.compiler.reset()
    counter = torch._dynamo.testing.CompileCounter()
    inputs = _inputs()
    for seed in range(3):
        torch.manual_seed(seed)
        experts = _experts(GptOssExperts)
        experts.config._experts_implementation = "moekit"
        torch.compile(experts.forward, fullgraph=True, backend=counter)(*inputs)
    assert counter.frame_count == 1


def test_on_the_meta_device_and_with_fake_tensors():
    with torch.device("meta"):
        experts = MixtralExperts(_config(MixtralExperts))
    experts.config._experts_implementation = "moekit"
    _forget()
    assert fused_activation(experts) == "swiglu"
    x, ids, gates = (each.detach().to("meta") for each in _inputs())
    assert experts(x, ids, gates).shape == (TOKENS, DIM)
    _forget()
    with FakeTensorMode():
        assert fused_activation(experts) == "swiglu"


def _forget():
    from moekit.interop import _transformers_gates

    _transformers_gates._recognised.clear()


def test_nothing_is_written_to_the_module():
    experts = _experts(GptOssExperts)
    before = set(vars(experts))
    _run(experts, "moekit", *_inputs())
    assert set(vars(experts)) == before


def _model(layers=2):
    sizes = {"hidden_size": DIM, "intermediate_size": HIDDEN, "num_local_experts": EXPERTS, "num_hidden_layers": layers}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 32}
    torch.manual_seed(0)
    return MixtralForCausalLM(MixtralConfig(**sizes, **heads))


def _step(model):
    model.zero_grad()
    ids = torch.randint(0, 32, (2, 9), generator=torch.Generator().manual_seed(3))
    output = model(input_ids=ids, labels=ids)
    output.loss.backward()
    return output.logits.detach(), {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing(use_reentrant):
    model = _model().train()
    model.set_experts_implementation("moekit")
    logits, gradients = _step(model)
    # The second name is deprecated since transformers 5.24.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": use_reentrant})
    again, recomputed = _step(model)
    assert torch.equal(logits, again)
    for name, gradient in gradients.items():
        assert torch.equal(recomputed[name], gradient), name


@pytest.mark.slow
def test_a_whole_model_compiles_without_a_graph_break():
    model = _model()
    model.set_experts_implementation("moekit")
    logits, gradients = _step(model)
    torch.compiler.reset()
    model.compile(fullgraph=True, backend="aot_eager")
    compiled_logits, compiled = _step(model)
    assert relative_error(compiled_logits, logits) <= 1e-5
    for name, gradient in gradients.items():
        assert relative_error(compiled[name], gradient) <= 1e-5, name


def test_routing_of_a_model_is_recorded():
    model = _model()
    with torch.no_grad(), record_routing(model) as record:
        ids = torch.arange(14).view(2, 7)
        model(input_ids=ids)
        assert not record.layers
        model.set_experts_implementation("moekit")
        model(input_ids=ids)
    assert list(record.layers) == ["model.layers.0.mlp.experts", "model.layers.1.mlp.experts"]
    assert [layer.load.sum().item() for layer in record.layers.values()] == [14 * TOP_K] * 2


def test_registering_again_changes_nothing():
    names = set(ALL_EXPERTS_FUNCTIONS.valid_keys())
    function = ALL_EXPERTS_FUNCTIONS["moekit"]
    register_experts()
    assert set(ALL_EXPERTS_FUNCTIONS.valid_keys()) == names
    assert ALL_EXPERTS_FUNCTIONS["moekit"] is function


def test_without_transformers_the_error_says_what_to_install():
    code = f"""
import sys
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "kernels")!r}]

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] == 'transformers':
            raise ModuleNotFoundError(f'No module named {{name!r}}', name=name)

sys.meta_path.insert(0, Absent())
import moekit.interop
from torch import nn
for call in (moekit.interop.register_experts, lambda: moekit.interop.fused_activation(nn.Identity())):
    try:
        call()
    except ImportError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    needs = 'needs transformers 5.7 or newer: pip install "transformers>=5.7".'
    assert done.stdout.splitlines() == [f"register_experts {needs}", f"fused_activation {needs}"]


@pytest.mark.parametrize("version", ["5.6.2", "5.0.0", "4.57.1"])
def test_an_older_transformers_is_refused(monkeypatch, version):
    """Its models would refuse the setting, naming only implementations of their own."""
    monkeypatch.setattr(sys.modules["transformers"], "__version__", version)
    with pytest.raises(ImportError, match=rf"register_experts needs transformers 5\.7 or newer: .* is {version}"):
        register_experts()


def test_a_transformers_without_the_interface_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers.integrations.moe", SimpleNamespace())
    with pytest.raises(ImportError, match=r"register_experts needs transformers 5\.7 or newer: pip install"):
        register_experts()
