"""One vocabulary of implementations, one rule, and what never starts a Triton kernel."""

import pytest
import torch

from moekit import FFNExperts, HashRouter, ModuleExperts, SparseMoE, TopKRouter, plan_expert_choice
from moekit_kernels import impl as module
from moekit_kernels.availability import interpreting, triton_is_installed
from moekit_kernels.combine import combine
from moekit_kernels.grouped_gemm import grouped_gemm
from moekit_kernels.impl import IMPLS, Limits, check_sizes, resolve_impl
from moekit_kernels.moe_ffn import ExpertWeights, moe_ffn
from moekit_kernels.plan import plan_dispatch
from moekit_kernels.routing import route
from moekit_kernels.runtime import record
from moekit_kernels.targets import SM_90

CPU, GPU, META = (torch.device(name) for name in ("cpu", "cuda", "meta"))
ONE, TWO = Limits(), Limits(has_torch=True)
SIZED = Limits(max_experts=8, max_top_k=2)
KERNEL_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


@pytest.fixture(autouse=True)
def _installed(monkeypatch):
    monkeypatch.setattr(module, "triton_is_installed", lambda: True)


@pytest.mark.parametrize("device", [CPU, META])
@pytest.mark.parametrize("dtype", [*KERNEL_DTYPES, torch.float64])
def test_auto_is_plain_where_there_is_no_gpu(device, dtype):
    assert resolve_impl("auto", ONE, device, ("x", dtype)) == "reference"
    assert resolve_impl("auto", TWO, device, ("x", dtype)) == "torch"


def test_auto_is_triton_on_a_gpu_for_what_its_kernels_take(monkeypatch):
    for dtype in KERNEL_DTYPES:
        assert resolve_impl("auto", TWO, GPU, ("x", dtype)) == "triton"
        assert resolve_impl("auto", ONE, GPU, ("x", dtype), ("gates", torch.float32)) == "triton"
    assert resolve_impl("auto", SIZED, GPU, num_experts=8, top_k=2) == "triton"
    assert resolve_impl("auto", SIZED, GPU, num_experts=9, top_k=2) == "reference"
    assert resolve_impl("auto", SIZED, GPU, num_experts=8, top_k=3) == "reference"
    assert resolve_impl("auto", TWO, GPU, ("x", torch.float32), activation=torch.tanh) == "torch"
    assert resolve_impl("auto", TWO, GPU, ("x", torch.float32), ("gates", torch.float64)) == "reference"
    monkeypatch.setattr(module, "triton_is_installed", lambda: False)
    assert resolve_impl("auto", TWO, GPU, ("x", torch.float32)) == "torch"
    assert resolve_impl("auto", ONE, GPU, ("x", torch.float32)) == "reference"


@pytest.mark.parametrize("device", [CPU, GPU, META])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_an_explicit_choice_is_never_changed(device, dtype):
    assert resolve_impl("reference", TWO, device, ("x", dtype)) == "reference"
    assert resolve_impl("torch", TWO, device, ("x", dtype)) == "torch"
    assert resolve_impl("torch", ONE, device, ("x", dtype)) == "reference"  # its one plain version
    assert resolve_impl("triton", TWO, device, ("x", torch.float32)) == "triton"


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("cuda", ONE), {}, "impl must be one of 'auto', 'reference', 'torch', 'triton', got 'cuda'"),
        (("triton", ONE), {"top_k": 3, "limits": SIZED}, 'takes top_k up to 2, got 3: use impl="auto", "torch" or'),
        (("triton", ONE), {"num_experts": 9, "limits": SIZED}, "takes num_experts up to 8, got 9"),
        (
            ("triton", TWO),
            {"activation": torch.tanh},
            "an activation with Triton functions, got the function tanh",
        ),
    ],
)
def test_what_cannot_run_is_an_error(arguments, options, message):
    choice, limits = arguments
    with pytest.raises(ValueError, match=message):
        resolve_impl(choice, options.pop("limits", limits), GPU, **options)


def test_a_dtype_without_kernel_is_named():
    with pytest.raises(ValueError, match=r"takes gates of bfloat16, float16 and float32, got torch\.float64"):
        resolve_impl("triton", ONE, GPU, ("rows", torch.float32), ("gates", torch.float64))


def test_without_the_package_triton_is_refused(monkeypatch):
    monkeypatch.setattr(module, "triton_is_installed", lambda: False)
    with pytest.raises(ValueError, match='impl="triton" needs the package triton, which is not installed'):
        resolve_impl("triton", ONE, GPU)


def test_modules_check_sizes_when_they_are_built():
    check_sizes("auto", SIZED, num_experts=9, top_k=3)
    with pytest.raises(ValueError, match="takes num_experts up to 8, got 9"):
        check_sizes("triton", SIZED, num_experts=9, top_k=1)
    with pytest.raises(ValueError, match=r"impl must be one of .* got 'loop'"):
        check_sizes("loop", SIZED, num_experts=1, top_k=1)


def test_the_rule_compiles_without_a_break():
    def function(x, device):
        return x + 1 if resolve_impl("auto", TWO, device, ("x", torch.bfloat16)) == "triton" else x

    compiled = torch.compile(function, backend="eager", fullgraph=True)
    assert compiled(torch.zeros(()), GPU).item() == 1
    assert compiled(torch.zeros(()), CPU).item() == 0


T, D, F, E, K = 6, 4, 5, 3, 2
IDS = torch.tensor([[0, 1], [1, 2], [2, 0], [0, 1], [1, 0], [2, 1]])
PLAN = plan_dispatch(IDS, E)


def _leaf(*shape):
    return torch.randn(*shape).requires_grad_()


def _weights():
    return ExpertWeights(_leaf(E, 2 * F, D), _leaf(E, D, F), _leaf(E, 2 * F), _leaf(E, D))


CALLS = {
    "route": lambda impl: route(_leaf(T, E), K, impl=impl).gates,
    "plan": lambda impl: plan_dispatch(IDS, E, impl=impl).offsets,
    "combine": lambda impl: combine(_leaf(T * K, D), PLAN, _leaf(T, K), impl=impl),
    "combine by the plan": lambda impl: combine(_leaf(T * K, D), PLAN._replace(impl=impl), _leaf(T, K)),
    "combine of expert choice": lambda impl: combine(
        _leaf(6, D), plan_expert_choice(torch.tensor([[0, 1], [2, 3], [4, 5]]), T, impl=impl), _leaf(3, 2)
    ),
    "grouped_gemm": lambda impl: grouped_gemm(_leaf(T * K, D), _leaf(E, F, D), PLAN.offsets, _leaf(E, F), impl=impl),
    "moe_ffn": lambda impl: moe_ffn(_leaf(T, D), _leaf(T, K), PLAN, _weights(), "swiglu", impl=impl),
    "moe_ffn by the plan": lambda impl: moe_ffn(
        _leaf(T, D), _leaf(T, K), PLAN._replace(impl=impl), _weights(), "swiglu"
    ),
    "moe_ffn of a function": lambda impl: moe_ffn(
        _leaf(T, D), _leaf(T, K), PLAN, _weights()._replace(down_proj=_leaf(E, D, 2 * F)), torch.tanh, impl=impl
    ),
}
LAYERS = {
    "SparseMoE.ffn": lambda impl: SparseMoE.ffn(D, F, E, K, impl=impl, capacity_factor=1.0)(_leaf(T, D)),
    "function": lambda impl: SparseMoE.ffn(D, F, E, K, impl=impl, activation=torch.tanh)(_leaf(T, D)),
    "the layer's own": lambda impl: SparseMoE(TopKRouter(D, E, K, impl=impl), FFNExperts(D, F, E), impl=impl)(
        _leaf(T, D)
    ),
    "modules": lambda impl: SparseMoE(
        HashRouter(E, 9), ModuleExperts([torch.nn.Linear(D, D) for _ in range(E)]), impl=impl
    )(_leaf(T, D), router_input=torch.arange(T)),
}


def _launches(monkeypatch, call):
    """The kernels that forward and backward would start, where every device counts as a GPU."""
    monkeypatch.setattr(module, "_is_gpu", lambda device: True)
    with record(SM_90) as launches:
        out = call()
        if out.requires_grad:
            out.sum().backward()
    return launches


@pytest.mark.parametrize("impl", ["torch", "reference"])
@pytest.mark.parametrize("name", CALLS)
def test_no_operation_starts_a_kernel_without_triton(name, impl, monkeypatch):
    assert _launches(monkeypatch, lambda: CALLS[name](impl)) == []


@pytest.mark.skipif(not triton_is_installed() or interpreting(), reason="launches are recorded, not interpreted")
@pytest.mark.parametrize("name", CALLS)
def test_with_auto_the_same_calls_start_kernels(name, monkeypatch):
    assert _launches(monkeypatch, lambda: CALLS[name]("auto"))


@pytest.mark.parametrize("impl", ["torch", "reference"])
@pytest.mark.parametrize("name", LAYERS)
def test_no_layer_starts_a_kernel_without_triton(name, impl, monkeypatch):
    assert _launches(monkeypatch, lambda: LAYERS[name](impl).output) == []


@pytest.mark.parametrize("own", ["reference", "triton"])
def test_a_conflict_of_layer_and_part_is_an_error(own):
    with pytest.raises(
        ValueError, match=rf"layer and of its experts must be the same, got impl='torch' and FFNExp.*{own}"
    ):
        SparseMoE(TopKRouter(D, E, K), FFNExperts(D, F, E, impl=own), impl="torch")
    with pytest.raises(ValueError, match="layer and of its router must be the same, got impl='torch' and TopKRouter"):
        SparseMoE(TopKRouter(D, E, K, impl=own), FFNExperts(D, F, E), impl="torch")
    moe = SparseMoE(TopKRouter(D, E, K), FFNExperts(D, F, E), impl="torch")
    with pytest.raises(ValueError, match="layer and of its experts must be the same"):
        moe.experts = FFNExperts(D, F, E, impl=own)


@pytest.mark.parametrize("impl", IMPLS)
def test_a_layer_passes_its_choice_to_every_part(impl):
    moe = SparseMoE.ffn(D, F, E, K, impl=impl)
    assert (moe.router.impl, moe.experts.impl, moe.impl) == (impl,) * 3


def test_a_choice_set_later_takes_effect_or_is_refused():
    moe = SparseMoE(TopKRouter(D, E, K), FFNExperts(D, F, E))
    moe.impl = "reference"
    assert moe.plan(moe.route(torch.randn(T, D))).impl == "reference"
    with pytest.raises(ValueError, match="impl must be one of"):
        moe.impl = "fast"
    moe.experts.impl = "torch"
    with pytest.raises(ValueError, match="layer and of its experts must be the same"):
        moe.impl = "triton"
    assert moe.impl == "reference"


def test_the_plan_carries_the_layers_choice():
    moe = SparseMoE(TopKRouter(D, E, K), FFNExperts(D, F, E), impl="reference")
    assert moe.plan(moe.route(torch.randn(T, D))).impl == "reference"


@pytest.mark.parametrize("part", [TopKRouter(D, E, K), ModuleExperts([torch.nn.Identity()])])
def test_an_unknown_impl_of_a_layer_is_named(part):
    with pytest.raises(ValueError, match="impl must be one of 'auto', 'reference', 'torch', 'triton', got 'fast'"):
        SparseMoE(part, part, impl="fast")
