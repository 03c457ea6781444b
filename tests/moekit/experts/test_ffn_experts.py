"""Stacked feed-forward experts, held to a loop over tokens for every implementation."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from moekit import FFNExperts, plan_dispatch, plan_expert_choice
from tests.oracles import NAIVE_ACTIVATIONS, assert_close, naive_experts, poisoned_empty, stacked_expert
from tests.strategies import few, ffn_cases

IMPLS = ["reference", "torch", "auto"]
IDS = torch.tensor([[0, 2], [2, 3], [2, 0], [3, 2], [0, 3]])  # expert 1 gets none


def _experts(impl="auto", activation="swiglu", bias=True, dtype=torch.float64, **options):
    experts = FFNExperts(4, 6, 4, activation=activation, bias=bias, impl=impl, dtype=dtype, **options)
    with torch.no_grad():
        for parameter in experts.parameters():
            parameter.normal_()
    return experts


def _inputs(dtype=torch.float64):
    x = torch.randn(5, 4, dtype=dtype, requires_grad=True)
    return x, plan_dispatch(IDS, 4), torch.rand(5, 2, dtype=dtype, requires_grad=True)


@few
@given(ffn_cases(), st.sampled_from(IMPLS))
def test_every_implementation_is_the_loop_over_tokens(case, impl):
    dim, hidden, out_dim = case.x.shape[1], case.down_proj.shape[2], case.down_proj.shape[1]
    num_experts, bias = case.routed.num_experts, case.up_bias is not None
    options = {"activation": case.activation, "bias": bias, "out_dim": out_dim, "impl": impl, "dtype": torch.float64}
    experts = FFNExperts(dim, hidden, num_experts, **options)
    names = [name for name, _ in experts.named_parameters()]
    experts.load_state_dict({name: getattr(case, name) for name in names})
    plan = plan_dispatch(case.routed.expert_ids, num_experts, kept=case.routed.kept)
    loop = stacked_expert(*(case[3:7]), case.activation)
    expected = naive_experts(case.x, case.gates, case.routed.expert_ids, case.routed.kept, loop, out_dim)
    assert_close(experts(case.x, plan, case.gates), expected)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", ["swiglu", torch.tanh], ids=["name", "function"])
def test_torch_is_the_reference_in_output_and_all_gradients(activation, bias):
    reference = _experts("reference", activation, bias)
    fast = _experts("torch", activation, bias)
    fast.load_state_dict(reference.state_dict())
    x, plan, gates = _inputs()
    results = []
    for experts in (reference, fast):
        out = experts(x, plan, gates)
        grads = torch.autograd.grad((out * torch.arange(4)).sum(), [x, gates, *experts.parameters()])
        results.append([out, *grads])
    for mine, theirs in zip(*results, strict=True):
        assert_close(mine, theirs)


@pytest.mark.parametrize("impl", IMPLS)
def test_a_function_as_activation_is_the_named_one(impl):
    named, function = _experts(impl, "gelu"), _experts(impl, F.gelu)
    function.load_state_dict(named.state_dict())
    x, plan, gates = _inputs()
    assert_close(function(x, plan, gates), named(x, plan, gates))


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("activation", ["swiglu", torch.tanh], ids=["name", "function"])
def test_expert_choice_plans(impl, activation):
    experts = _experts(impl, activation)
    token_ids = torch.tensor([[0, 1], [4, 0], [2, 2], [3, 0]])
    kept = torch.tensor([[True, True], [True, False], [True, False], [False, False]])
    x, gates = torch.randn(5, 4, dtype=torch.float64), torch.rand(4, 2, dtype=torch.float64)
    out = experts(x, plan_expert_choice(token_ids, 5, kept=kept), gates)
    named = dict(experts.named_parameters())
    expected = torch.zeros(5, 4, dtype=torch.float64)
    for e in range(4):
        for c in range(2):
            if kept[e, c]:
                token = x[token_ids[e, c]]
                act = NAIVE_ACTIVATIONS[activation] if isinstance(activation, str) else activation
                hidden = act(named["up_proj"][e] @ token + named["up_bias"][e])
                expected[token_ids[e, c]] += gates[e, c] * (named["down_proj"][e] @ hidden + named["down_bias"][e])
    assert_close(out, expected)
    assert not out[3].any()


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("activation", ["swiglu", torch.tanh], ids=["name", "function"])
def test_no_uninitialised_memory_shows(impl, activation):
    experts, (x, plan, gates) = _experts(impl, activation), _inputs()
    clean = experts(x, plan, gates)
    with poisoned_empty():
        out = experts(x, plan_dispatch(IDS, 4), gates)
        out.sum().backward()
    assert torch.equal(out, clean)
    assert all(p.grad.isfinite().all() for p in (x, gates, *experts.parameters()))
    assert not any(p.grad[1].any() for p in experts.parameters())


def test_the_dtype_that_counts_is_the_one_after_autocast(monkeypatch):
    seen = []

    def resolve(impl, limits, device, *operands, **options):
        seen.append(tuple(dtype for _, dtype in operands))
        return "reference"

    monkeypatch.setattr("moekit_kernels.moe_ffn.op.resolve_impl", resolve)
    x, plan, gates = _inputs()
    single, double = _experts(dtype=torch.float32), _experts()
    single(x.float(), plan, gates.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        single(x.float(), plan, gates.bfloat16())
        single(x.float(), plan, gates.float())
        double(x, plan, gates.float())
    single(x.float(), plan, gates)
    half, single_, double_ = torch.bfloat16, torch.float32, torch.float64
    assert seen == [(single_, single_), (half, half), (half, single_), (double_, single_), (single_, double_)]


class CalledError(Exception):
    """Carries what the operation was called with."""


@pytest.mark.parametrize(
    ("impl", "recompute", "expected"),
    [
        ("auto", "activation", (True, False, "auto")),
        ("torch", "none", (True, True, "torch")),
        ("triton", "all", (False, False, "triton")),
    ],
)
def test_the_operation_gets_the_plan_the_recomputation_and_the_implementation(impl, recompute, expected, monkeypatch):
    def operation(*arguments):
        raise CalledError(arguments)

    monkeypatch.setattr("moekit_kernels.moe_ffn.op._moe_ffn", operation)
    x, plan, gates = _inputs(torch.float32)
    with pytest.raises(CalledError) as called:
        _experts(impl, recompute=recompute, dtype=torch.float32)(x, plan, gates)
    arguments = called.value.args[0]
    assert arguments[5] is plan.row_of_slot
    assert arguments[-3:] == expected


@pytest.mark.parametrize("recompute", ["activation", "none", "all"])
@pytest.mark.parametrize("activation", ["gelu", "swiglu", "geglu_interleaved"])
def test_recomputation_changes_no_number(activation, recompute):
    default, other = _experts("torch", activation), _experts("torch", activation, recompute=recompute)
    other.load_state_dict(default.state_dict())
    x, plan, gates = _inputs()
    results = []
    for experts in (default, other):
        out = experts(x, plan, gates)
        results.append([out, *torch.autograd.grad((out * torch.arange(4)).sum(), [x, gates, *experts.parameters()])])
    for mine, theirs in zip(*results, strict=True):
        assert_close(mine, theirs)


def test_the_meta_device_gives_shapes_with_any_recomputation():
    for options in ({"recompute": "all"}, {"recompute": "none", "impl": "torch"}, {"impl": "reference"}):
        experts = FFNExperts(4, 6, 4, device="meta", **options)
        plan = plan_dispatch(IDS, 4)
        moved = plan._replace(**{n: t.to("meta") for n, t in plan._asdict().items() if isinstance(t, torch.Tensor)})
        out = experts(torch.empty(5, 4, device="meta"), moved, torch.empty(5, 2, device="meta"))
        out.sum().backward()
        assert out.shape == (5, 4)
        assert experts.up_proj.grad.shape == experts.up_proj.shape


def test_initial_weights_follow_the_formula():
    experts = FFNExperts(100, 50, 40, activation="gelu", bias=True, init_scale=0.3)
    for weight, fan_in in ((experts.up_proj, 100), (experts.down_proj, 50)):
        bound = math.sqrt(0.3 / fan_in)
        # A normal cut at two standard deviations keeps 0.8796 of its own; 2e5 draws vary by under 1 %.
        assert weight.std().item() == pytest.approx(0.8796 * bound, rel=0.01)
        assert weight.abs().max() <= 2 * bound
    assert not experts.up_bias.any()
    assert not experts.down_bias.any()
    with torch.no_grad():
        experts.up_bias.fill_(1)
    before = experts.up_proj.clone()
    experts.reset_parameters()
    assert not experts.up_bias.any()
    assert not torch.equal(experts.up_proj, before)


def test_repr_names_the_settings():
    text = repr(FFNExperts(4, 6, 2, activation=F.relu, impl="torch"))
    assert "dim=4, hidden_dim=6, num_experts=2, activation=relu, bias=False, impl='torch'" in text
    assert "activation='swiglu'" in repr(FFNExperts(4, 6, 2))
    assert "recompute" not in repr(FFNExperts(4, 6, 2))
    assert "impl='auto', recompute='all'" in repr(FFNExperts(4, 6, 2, recompute="all"))


@pytest.mark.parametrize("name", ["dim", "hidden_dim", "num_experts", "out_dim"])
def test_widths_below_one_are_refused(name):
    with pytest.raises(ValueError, match=f"^{name} must be at least 1, got 0"):
        FFNExperts(**({"dim": 4, "hidden_dim": 4, "num_experts": 2} | {name: 0}))


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match=r"activation must be one of 'gelu'.*or a function, got 'mish'"):
        FFNExperts(4, 4, 2, activation="mish")
    with pytest.raises(ValueError, match="impl must be one of 'auto', 'reference', 'torch', 'triton', got 'cuda'"):
        FFNExperts(4, 4, 2, impl="cuda")
    with pytest.raises(ValueError, match="recompute must be one of 'activation', 'none', 'all', got 'some'"):
        FFNExperts(4, 4, 2, recompute="some")


def test_options_that_exclude_each_other_are_refused_at_once():
    with pytest.raises(ValueError, match=r"needs an activation with Triton functions, got the function tanh: use"):
        FFNExperts(4, 4, 2, impl="triton", activation=torch.tanh)
    with pytest.raises(ValueError, match=r"recompute='all' needs the fused kernels, got the function tanh, with which"):
        FFNExperts(4, 4, 2, recompute="all", activation=torch.tanh)
    with pytest.raises(ValueError, match=r"recompute='none' needs the fused kernels, got impl=\"reference\", with"):
        FFNExperts(4, 4, 2, recompute="none", impl="reference")


def test_options_that_exclude_each_other_on_a_device_are_refused_there(monkeypatch):
    x, plan, gates = _inputs()
    monkeypatch.setattr("moekit_kernels.moe_ffn.op._LOOP_DEVICES", ())  # as if the CPU were another device
    with pytest.raises(ValueError, match=r"recompute='all' needs the fused kernels, got impl='torch' on device 'cpu'"):
        _experts(recompute="all")(x, plan, gates)


def test_triton_is_refused_where_it_cannot_run():
    x, plan, gates = _inputs()
    with pytest.raises(ValueError, match=r'impl="triton" takes tokens and weights of bfloat16, .* got torch.float64'):
        _experts("triton")(x, plan, gates)
    with pytest.raises(ValueError, match=r'impl="triton" takes gates of bfloat16, .* got torch.float64'):
        _experts("triton", dtype=torch.float32)(x.float(), plan, gates)  # gates of float64
    with pytest.raises(ValueError, match=r"needs tensors on a GPU, got device 'cpu': use impl=\"auto\""):
        _experts("triton", dtype=torch.float32)(x.float(), plan, gates.float())


def test_inputs_that_do_not_fit_are_refused():
    experts, (x, plan, gates) = _experts(), _inputs()
    with pytest.raises(ValueError, match=r"x must have shape \(T, D\), got shape \(1, 5, 4\)"):
        experts(x[None], plan, gates)
    with pytest.raises(ValueError, match=r"x must have a last dimension of 4, got shape \(5, 3\)"):
        experts(x[:, :3], plan, gates)
    with pytest.raises(ValueError, match="x must be on the device of the experts' weights, cpu, got meta"):
        experts(x.to("meta"), plan, gates)
    with pytest.raises(ValueError, match=r"x must have the dtype of the experts' weights, torch.float64, got .*32"):
        experts(x.float(), plan, gates)
    with pytest.raises(ValueError, match="plan must be for 4 experts, got one for 5"):
        experts(x, plan_dispatch(IDS, 5), gates)
    with pytest.raises(ValueError, match=r"x must have the plan's 5 tokens, got shape \(4, 4\)"):
        experts(x[:4], plan, gates)
    with pytest.raises(ValueError, match=r"gates must have one value per slot, \(5, 2\), got shape \(5, 1\)"):
        experts(x, plan, gates[:, :1])


def test_float64_is_refused_under_autocast_too():
    experts, (x, plan, gates) = _experts(), _inputs()
    with (
        torch.autocast("cpu", dtype=torch.bfloat16),
        pytest.raises(ValueError, match=r"Convert one with .to\(\), or run under torch.autocast"),
    ):
        experts(x.float(), plan, gates)
