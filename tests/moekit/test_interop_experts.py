"""``experts_implementation="moekit"``: the output and gradients of eager, whatever the model does with its experts."""

import copy
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import MixtralConfig
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts
from transformers.models.mixtral.modeling_mixtral import MixtralExperts, MixtralForCausalLM
from transformers.models.nemotron_h.modeling_nemotron_h import NemotronHExperts

from moekit.inspect import record_routing
from moekit.interop import fused_activation, register_experts
from moekit.interop.transformers import _experts as experts_backend
from tests.moekit.interop_experts_cases import (
    DIM,
    EXPERTS,
    HIDDEN,
    KINDS,
    TOKENS,
    TOP_K,
    compare,
    config_of,
    experts_of,
    inputs_of,
    results_of,
)
from tests.oracles import relative_error
from tests.test_import import ROOT


@pytest.fixture(autouse=True)
def _registered():
    register_experts()


@pytest.mark.parametrize("kind", KINDS)
def test_results_of_are_eagers(kind):
    compare(experts_of(kind), *inputs_of())


@pytest.mark.parametrize("act", ["silu", "swish", "gelu", "gelu_python", "gelu_pytorch_tanh", "relu", "relu2", "mish"])
@pytest.mark.parametrize("kind", [MixtralExperts, NemotronHExperts])
def test_every_activation_of_the_configuration(kind, act):
    option = {"hidden_act": act} if kind is MixtralExperts else {"mlp_hidden_act": act}
    compare(experts_of(kind, **option), *inputs_of())


@pytest.mark.parametrize("kind", KINDS)
def test_slots_of_other_ranks_are_left_out(kind):
    experts = experts_of(kind)
    experts._is_expert_parallel = True
    x, ids, gates = inputs_of()
    ids = ids.clone()
    ids[::3, 0] = EXPERTS
    ids[4] = EXPERTS  # a token without any
    with torch.no_grad():
        zeroed = gates.masked_fill(ids == EXPERTS, 0.0)
    # Two of the loops do not skip such ids; there the expected values are those of slots with a gate of 0.
    spare = ids.where(ids < EXPERTS, 0) if kind in (GptOssExperts, NemotronHExperts) else ids
    expected = results_of(experts, "eager", x, spare, zeroed.requires_grad_())
    results = results_of(experts, "moekit", x, ids, gates)
    assert not results["gates"][ids == EXPERTS].any()
    assert not results["output"][4].any()
    for name in expected:
        mine, theirs = results[name], expected[name]
        if name == "gates":
            mine, theirs = mine[ids < EXPERTS], theirs[ids < EXPERTS]
        assert relative_error(mine, theirs) <= 1e-5, name


@pytest.mark.parametrize("kind", [MixtralExperts, GptOssExperts])
def test_attributes_that_transformers_5_0_does_not_set_have_its_defaults(kind):
    experts = experts_of(kind)
    for name in ("has_gate", "has_post_expert_norm", "is_concatenated", "_is_expert_parallel"):
        delattr(experts, name)
    compare(experts, *inputs_of())


def test_gates_of_all_experts_are_read_at_the_chosen_ones():
    experts, (x, ids, gates) = experts_of(MixtralExperts), inputs_of()
    experts.config._experts_implementation = "moekit"
    full = torch.zeros(TOKENS, EXPERTS).scatter(1, ids, gates.detach())
    assert torch.equal(experts(x, ids, full), experts(x, ids, gates))


def test_transposed_weights_are_views():
    experts = experts_of(GptOssExperts)
    weights = experts_backend.stacked_weights(experts)
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
    experts = experts_of(kind, dtype)
    x, ids, gates = inputs_of(dtype, gates_dtype=gates_dtype)
    results = results_of(experts, "moekit", x, ids, gates)
    # In float64, so that the roundings of eager do not count.
    exact = copy.deepcopy(experts).double()
    expected = results_of(
        exact, "eager", x.detach().double().requires_grad_(), ids, gates.detach().double().requires_grad_()
    )
    for name in expected:
        rounding = torch.finfo(results[name].dtype).eps
        assert relative_error(results[name].double(), expected[name]) <= max(bound, rounding), name
    assert results["output"].dtype == dtype
    assert results["gates"].dtype == gates_dtype


def test_tokens_of_another_dtype_than_the_weights_are_cast_as_grouped_mm_casts_them():
    experts, (x, ids, gates) = experts_of(MixtralExperts, torch.bfloat16), inputs_of()
    pairs = [results_of(experts, implementation, x, ids, gates) for implementation in ("grouped_mm", "moekit")]
    assert pairs[1]["output"].dtype == torch.float32
    for name, expected in pairs[0].items():
        assert relative_error(pairs[1][name], expected) <= 2e-2, name


def test_weights_that_nothing_computes_in_are_refused():
    experts = experts_of(MixtralExperts).requires_grad_(False).to(torch.float8_e4m3fn)
    experts.config._experts_implementation = "moekit"
    with pytest.raises(ValueError, match=r"bfloat16, float16, float32 or float64, got torch.float8_e4m3fn in Mixtral"):
        experts(*inputs_of())


@pytest.mark.parametrize("kind", KINDS)
def test_autocast(kind):
    experts, inputs = experts_of(kind), inputs_of()
    expected = results_of(experts, "eager", *inputs)
    with torch.autocast("cpu", torch.bfloat16):
        results = results_of(experts, "moekit", *inputs)
    for name in expected:
        assert results[name].dtype == torch.float32, name
        assert relative_error(results[name], expected[name]) <= 2e-2, name
    assert relative_error(results["output"], expected["output"]) > 1e-5  # it was computed in bfloat16


@pytest.mark.parametrize("kind", KINDS)
def test_frozen_weights_get_no_gradient_and_the_input_does(kind):
    experts, inputs = experts_of(kind).requires_grad_(False), inputs_of()
    compare(experts, *inputs)
    assert results_of(experts, "moekit", *inputs).keys() == {"output", "x", "gates"}


@pytest.mark.parametrize("kind", KINDS)
def test_no_tokens_and_32_bit_ids(kind):
    experts = experts_of(kind)
    experts.config._experts_implementation = "moekit"
    x, ids, gates = inputs_of()
    assert torch.equal(experts(x, ids.int(), gates), experts(x, ids, gates))
    assert experts(x[:0], ids[:0], gates[:0]).shape == (0, DIM)


@pytest.mark.parametrize("kind", KINDS)
def test_compiled_whole(kind):
    experts, inputs = experts_of(kind), inputs_of()
    expected = results_of(experts, "eager", *inputs)
    torch.compiler.reset()
    compiled = copy.deepcopy(experts)
    compiled.compile(fullgraph=True, backend="aot_eager")
    results = results_of(compiled, "moekit", *inputs)
    for name in expected:
        assert relative_error(results[name], expected[name]) <= 1e-5, name


def test_layers_of_one_kind_are_compiled_once():
    torch.compiler.reset()
    counter = torch._dynamo.testing.CompileCounter()
    inputs = inputs_of()
    for seed in range(3):
        torch.manual_seed(seed)
        experts = experts_of(GptOssExperts)
        experts.config._experts_implementation = "moekit"
        torch.compile(experts.forward, fullgraph=True, backend=counter)(*inputs)
    assert counter.frame_count == 1


def test_on_the_meta_device_and_with_fake_tensors():
    with torch.device("meta"):
        experts = MixtralExperts(config_of(MixtralExperts))
    experts.config._experts_implementation = "moekit"
    _forget()
    assert fused_activation(experts) == "swiglu"
    x, ids, gates = (each.detach().to("meta") for each in inputs_of())
    assert experts(x, ids, gates).shape == (TOKENS, DIM)
    _forget()
    with FakeTensorMode():
        assert fused_activation(experts) == "swiglu"


def _forget():
    from moekit.interop.transformers import _gates

    _gates._recognised.clear()


def test_nothing_is_written_to_the_module():
    experts = experts_of(GptOssExperts)
    before = set(vars(experts))
    results_of(experts, "moekit", *inputs_of())
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
