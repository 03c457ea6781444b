"""The fused expert FFN: which kernel computes, and what it refuses."""

import pytest
import torch

from moekit_kernels.moe_ffn import ExpertWeights, loop, moe_ffn, op, resolve
from tests.oracles import assert_close
from tests.strategies import FFNCase, Routed, ffn_case

CPU, GPU, META = (torch.device(name) for name in ("cpu", "cuda", "meta"))
HALVES = (torch.bfloat16, torch.float16)
IDS = torch.tensor([[0, 2], [2, 1], [1, 0]])


def _arguments(dtype=torch.float32, **replaced) -> dict:
    case: FFNCase = ffn_case(Routed(IDS, torch.ones_like(IDS, dtype=torch.bool), 3, 0), 4, 6, 5, "swiglu", True)
    return case.leaves(dtype) | {"plan": case.routed.plan, "activation": "swiglu"} | replaced


def _call(arguments, **options):
    weights = ExpertWeights(*(arguments[name] for name in ExpertWeights._fields))
    return moe_ffn(arguments["x"], arguments["gates"], arguments["plan"], weights, arguments["activation"], **options)


def test_what_auto_means(monkeypatch):
    monkeypatch.setattr(op, "triton_is_installed", lambda: True)
    for dtype in (*HALVES, torch.float32, torch.float64):
        assert resolve("auto", CPU, dtype) == resolve("loop", CPU, dtype) == "loop"
    for dtype in (*HALVES, torch.float32):
        assert resolve("auto", GPU, dtype) == "triton"


def test_no_kernel_is_an_error(monkeypatch):
    monkeypatch.setattr(op, "triton_is_installed", lambda: True)
    with pytest.raises(
        ValueError, match=r"no kernel for torch.float64 on device 'cuda' \(with Triton installed\): use"
    ):
        resolve("auto", GPU, torch.float64)
    with pytest.raises(ValueError, match=r"no kernel for torch.float32 on device 'meta'.*use moe_ffn_reference, or"):
        resolve("auto", META, torch.float32)
    monkeypatch.setattr(op, "triton_is_installed", lambda: False)
    with pytest.raises(ValueError, match=r"no kernel for torch.float32 on device 'cuda' \(with Triton not installed\)"):
        resolve("auto", GPU, torch.float32)


def test_an_explicit_choice_never_falls_back():
    with pytest.raises(ValueError, match=r'impl="loop" runs on CPU, got device .cuda.: use impl="auto" or "triton"'):
        resolve("loop", GPU, torch.float32)
    with pytest.raises(ValueError, match=r'impl="triton" computes in bfloat16, float16 and float32, got torch.float64'):
        resolve("triton", GPU, torch.float64)
    with pytest.raises(ValueError, match=r"needs tensors on a GPU, got device 'cpu'"):
        _call(_arguments(), impl="triton")
    with pytest.raises(
        ValueError, match=r'impl="triton" computes in .* got torch.float64 \(tokens, weights or gates\)'
    ):
        _call(_arguments(gates=torch.rand(3, 2, dtype=torch.float64)), impl="triton")


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="impl must be one of 'auto', 'loop', 'triton', got 'torch'"):
        _call(_arguments(), impl="torch")
    with pytest.raises(ValueError, match="recompute must be one of 'activation', 'none', 'all', got 'some'"):
        _call(_arguments(), recompute="some")
    with pytest.raises(ValueError, match=r"activation must be one of 'gelu', 'relu', .*, got 'mish'"):
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
    """What ``launch`` is called with, and that what it gives comes back: here it is the loop, on CPU."""
    calls = []

    def chosen(impl, x, gates):
        calls.append(impl)
        return loop

    monkeypatch.setattr(op, "_kernel", chosen)
    found, expected = _arguments(), _arguments()
    _call(found, impl="triton").sum().backward()
    _call(expected, impl="loop").sum().backward()
    assert calls == ["triton", "triton", "loop", "loop"]
    for name in ("x", "gates", "up_proj", "down_proj", "up_bias", "down_bias"):
        assert_close(found[name].grad, expected[name].grad)
