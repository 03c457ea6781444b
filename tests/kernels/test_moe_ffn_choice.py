"""The fused expert FFN: which kernel computes, and what it refuses."""

import pytest
import torch

from moekit_kernels.moe_ffn import ExpertWeights, loop, moe_ffn, op
from moekit_kernels.moe_ffn.parts import moe_ffn_parts
from tests.oracles import assert_close
from tests.strategies import FFNCase, Routed, ffn_case

IDS = torch.tensor([[0, 2], [2, 1], [1, 0]])


def _arguments(dtype=torch.float32, **replaced) -> dict:
    case: FFNCase = ffn_case(Routed(IDS, torch.ones_like(IDS, dtype=torch.bool), 3, 0), 4, 6, 5, "swiglu", True)
    return case.leaves(dtype) | {"plan": case.routed.plan, "activation": "swiglu"} | replaced


def _weights(arguments):
    return ExpertWeights(*(arguments[name] for name in ExpertWeights._fields))


def _call(arguments, **options):
    x, gates, plan, activation = (arguments[name] for name in ("x", "gates", "plan", "activation"))
    return moe_ffn(x, gates, plan, _weights(arguments), activation, **options)


def test_triton_is_refused_where_it_cannot_run():
    with pytest.raises(ValueError, match=r"needs tensors on a GPU, got device 'cpu'"):
        _call(_arguments(), impl="triton")
    with pytest.raises(ValueError, match=r"takes tokens and weights of bfloat16, .* got torch.float64"):
        _call(_arguments(torch.float64), impl="triton")
    with pytest.raises(ValueError, match=r"takes gates of bfloat16, float16 and float32, got torch.float64"):
        _call(_arguments(gates=torch.rand(3, 2, dtype=torch.float64)), impl="triton")


def test_every_implementation_computes_the_same_and_the_plan_chooses_by_default():
    arguments = _arguments()
    expected = _call(arguments, impl="reference")
    for impl in ("auto", "torch"):
        assert_close(_call(arguments, impl=impl), expected)
        assert_close(_call(arguments | {"plan": arguments["plan"]._replace(impl=impl)}), expected)
    assert_close(
        moe_ffn_parts(*(arguments[n] for n in ("x", "gates", "plan")), _weights(arguments), "swiglu", "torch"), expected
    )
    with pytest.raises(ValueError, match="needs tensors on a GPU"):
        _call(arguments | {"plan": arguments["plan"]._replace(impl="triton")})


def test_a_function_needs_no_gated_width_and_no_recomputation():
    arguments = _arguments(activation=lambda columns: columns[:, :6] * 2)
    assert_close(_call(arguments, impl="torch"), _call(arguments, impl="reference"))
    with pytest.raises(ValueError, match=r"recompute='all' needs the fused kernels, got impl='torch' on device 'cpu'"):
        _call(arguments, recompute="all")
    with pytest.raises(ValueError, match=r"recompute='none' needs the fused kernels, got impl='reference'"):
        _call(_arguments(), recompute="none", impl="reference")
    with pytest.raises(ValueError, match="needs an activation with Triton functions, got the function <lambda>"):
        _call(arguments, impl="triton")


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="impl must be one of 'auto', 'reference', 'torch', 'triton', got 'loop'"):
        _call(_arguments(), impl="loop")
    with pytest.raises(ValueError, match="recompute must be one of 'activation', 'none', 'all', got 'some'"):
        _call(_arguments(), recompute="some")
    with pytest.raises(ValueError, match=r"activation must be one of 'gelu', 'gelu_tanh', .*, got 'mish'"):
        _call(_arguments(activation="mish"))


@pytest.mark.parametrize("name", ["up_proj", "down_proj", "up_bias", "down_bias"])
def test_dtypes_must_agree(name):
    arguments = _arguments()
    arguments[name] = arguments[name].bfloat16()
    with pytest.raises(ValueError, match=rf"{name} must have the dtype of x, torch.float32, got torch.bfloat16. Conv"):
        _call(arguments)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert _call(arguments).dtype == torch.bfloat16


def test_gates_may_be_wider():
    arguments = _arguments(torch.bfloat16)
    assert arguments["gates"].dtype == torch.float32
    out = _call(arguments)
    out.sum().backward()
    assert out.dtype == arguments["x"].grad.dtype == torch.bfloat16
    assert arguments["gates"].grad.dtype == torch.float32


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("x", (1, 3, 4), r"x must have shape \(T, D\), got shape \(1, 3, 4\)"),
        ("up_proj", (12, 4), r"up_proj must have shape \(E, F1, D\), got shape \(12, 4\)"),
        ("down_proj", (3, 30), r"down_proj must have shape \(E, D2, F\), got shape \(3, 30\)"),
        ("x", (3, 7), r"up_proj must have shape \(3, 12, 7\) for x \(3, 7\), down_proj \(3, 5, 6\)"),
        ("up_proj", (3, 6, 4), r"up_proj must have shape \(3, 12, 4\) .* activation 'swiglu', got \(3, 6, 4\)"),
        ("down_proj", (2, 5, 6), r"up_proj must have shape \(2, 12, 4\)"),
        ("up_bias", (3, 6), r"up_bias must have shape \(3, 12\)"),
        ("down_bias", (3, 6), r"down_bias must have shape \(3, 5\)"),
        ("gates", (2, 3), r"gates must have one value per slot, \(3, 2\), got shape \(2, 3\)"),
    ],
)
def test_shapes_must_fit(name, shape, message):
    with pytest.raises(ValueError, match=message):
        _call(_arguments(**{name: torch.zeros(shape)}))


def test_the_plan_must_fit():
    plan = _arguments()["plan"]
    with pytest.raises(ValueError, match=r"x must have the plan's 4 tokens, got shape \(3, 4\)"):
        _call(_arguments(plan=plan._replace(num_tokens=4)))
    with pytest.raises(ValueError, match=r"plan.offsets must have shape \(4,\)"):
        _call(_arguments(plan=plan._replace(offsets=plan.offsets[:3])))


def test_triton_is_a_module_with_the_functions_of_the_loop(monkeypatch):
    """The arguments of the launchers, and that their results come back: here of the loop, on CPU."""
    calls = []

    def chosen(impl, x, gates, activation):
        calls.append(impl)
        return loop

    monkeypatch.setattr(op, "_kernel", chosen)
    actual, expected = _arguments(), _arguments()
    _call(actual, impl="auto").sum().backward()
    _call(expected, impl="torch").sum().backward()
    assert calls == ["auto", "auto", "torch", "torch"]
    for name in ("x", "gates", "up_proj", "down_proj", "up_bias", "down_bias"):
        assert_close(actual[name].grad, expected[name].grad)
