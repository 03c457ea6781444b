"""Which calls bypass the dispatcher, and that they compute and differentiate as the registered operation does."""

import inspect
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from moekit_kernels.combine.op import _combine
from moekit_kernels.eager import is_plain_eager, needs_gradient, operation
from moekit_kernels.grouped_gemm.op import _grouped_gemm
from moekit_kernels.moe_ffn.op import _moe_ffn
from moekit_kernels.plan.op import _plan_dispatch


@operation("moekit_tests::weighted_square")
def _square(x: Tensor, weight: float, name: str) -> tuple[Tensor, Tensor]:
    return weight * x * x, x.sign()


@_square.register_fake
def _(x: Tensor, weight: float, name: str) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(x)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.weight = inputs[1]
    ctx.save_for_backward(inputs[0])


def _backward(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, None, None]:
    return None if grad is None else 2 * ctx.weight * ctx.saved_tensors[0] * grad, None, None


_square.register_autograd(_backward, setup_context=_save)


@operation("moekit_tests::parts")
def _parts(x: Tensor) -> list[Tensor]:
    return [x + 1, x * 2]


_parts.register_autograd(lambda ctx, grads: grads[1] * 2, setup_context=lambda ctx, inputs, output: None)
# Another result than that of the function, to tell the two apart.
_parts.register_vmap(lambda info, dims, x: ([torch.zeros_like(x), torch.ones_like(x)], [0, 0]))


class Observed(TorchDispatchMode):
    """Lists the operations that pass the dispatcher."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operations.append(str(func))
        return func(*args, **(kwargs or {}))


class Passes(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


class Subclass(Tensor): ...


def test_a_plain_call_does_not_enter_the_dispatcher(monkeypatch: pytest.MonkeyPatch):
    def fails(*arguments: object) -> None:
        raise AssertionError("the registered operation ran")

    monkeypatch.setattr(_square, "registered", fails)
    x = torch.randn(3, requires_grad=True)
    out, signs = _square(x, 3.0, "a")
    out.sum().backward()
    torch.testing.assert_close(x.grad, 6 * x.detach())
    assert not signs.requires_grad
    with torch.no_grad():
        assert not _square(x, 3.0, "a")[0].requires_grad
    with torch.inference_mode():
        assert _square(x, 3.0, "a")[0].is_inference()


@pytest.mark.parametrize("context", [Observed, Passes, forward_ad.dual_level], ids=lambda context: context.__name__)
def test_modes_and_forward_levels_see_the_registered_operation(context: Callable[[], Any]):
    x = torch.randn(3)
    assert is_plain_eager(x, 1.0, None, "name", True)
    with context():
        assert not is_plain_eager(x)
    assert is_plain_eager(x)


def test_a_dispatch_mode_sees_both_directions():
    x = torch.randn(3, requires_grad=True)
    with Observed() as observed:
        _square(x, 2.0, "a")[0].sum().backward()
    assert "moekit_tests.weighted_square.default" in observed.operations


@pytest.mark.parametrize(
    ("make", "is_plain"),
    [
        (lambda x: x, True),
        (torch.nn.Parameter, True),
        (lambda x: x.to("meta"), False),
        (lambda x: x.as_subclass(Subclass), False),
        (lambda x: torch.complex(x, x).conj().imag, False),
    ],
    ids=["tensor", "parameter", "meta", "subclass", "negated view"],
)
def test_tensors_that_need_the_dispatcher(make: Callable[[Tensor], Any], is_plain: bool):
    assert is_plain_eager(1, make(torch.ones(2))) == is_plain


def test_lazily_negated_views_are_computed_right():
    x = torch.complex(torch.ones(2), torch.full((2,), 3.0)).conj().imag
    assert x.is_neg()
    assert _square(x, 1.0, "a")[1].tolist() == [-1.0, -1.0]


@pytest.mark.parametrize("transform", [torch.func.grad, torch.func.vjp, torch.func.functionalize])
def test_transforms_see_the_registered_operation(transform: Callable[..., Any]):
    plain: list[bool] = []

    def probe(x: Tensor) -> Tensor:
        plain.append(is_plain_eager(x))
        return x.sum()

    x = torch.randn(3)
    if transform is torch.func.vjp:
        transform(probe, x)
    else:
        transform(probe)(x)
    assert plain == [False]


@pytest.mark.parametrize("pre_dispatch", [False, True])
@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
def test_tracers_see_the_registered_operation(mode: str, pre_dispatch: bool):
    graph = make_fx(lambda x: _square(x, 2.0, "a")[0], tracing_mode=mode, pre_dispatch=pre_dispatch)(torch.randn(3))
    assert any("weighted_square" in str(node.target) for node in graph.graph.nodes)


def test_jit_trace_sees_the_registered_operation():
    # torch 2.14 deprecates the tracer, 2.11 does not.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(lambda x: _square(x, 2.0, "a")[0], torch.randn(3))
    assert "moekit_tests::weighted_square" in str(traced.graph)


def test_export_sees_the_registered_operation():
    class Square(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return _square(x, 2.0, "a")[0]

    for strict in (True, False):
        program = torch.export.export(Square(), (torch.randn(3),), strict=strict)
        assert "weighted_square" in program.graph_module.code


def test_compiled_code_is_one_graph_with_the_registered_operation():
    targets: list[str] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        targets.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    x = torch.randn(3, requires_grad=True)
    out = torch.compile(lambda x: _square(x, 2.0, "a")[0], backend=backend, fullgraph=True)(x)
    torch.testing.assert_close(out, 2 * x * x)
    assert any("weighted_square" in target for target in targets)


def test_vmap_takes_the_registered_rule():
    a, b = torch.vmap(_parts)(torch.ones(2, 3))
    torch.testing.assert_close((a, b), (torch.zeros(2, 3), torch.ones(2, 3)))


def test_saved_tensors_pass_the_hooks():
    packed: list[torch.Size] = []

    def pack(tensor: Tensor) -> Tensor:
        packed.append(tensor.shape)
        return tensor.clone()

    x = torch.randn(3, requires_grad=True)
    with saved_tensors_hooks(pack, lambda tensor: tensor):
        out = _square(x, 2.0, "a")[0]
    assert packed == [x.shape]
    out.sum().backward()
    torch.testing.assert_close(x.grad, 4 * x.detach())


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointing(use_reentrant: bool):
    x = torch.randn(3, requires_grad=True)
    checkpoint(lambda x: _square(x, 2.0, "a")[0], x, use_reentrant=use_reentrant).sum().backward()
    torch.testing.assert_close(x.grad, 4 * x.detach())


def test_operations_that_return_lists_have_gradients():
    x = torch.randn(3, requires_grad=True)
    (a, b), (c, d) = _parts(x), _parts.registered(x)
    torch.testing.assert_close((a, b), (c, d))
    (gradient,) = torch.autograd.grad(b.sum(), x)
    torch.testing.assert_close(gradient, torch.full((3,), 2.0))


def test_needs_gradient_follows_grad_mode_and_inputs():
    x = torch.randn(3, requires_grad=True)
    assert needs_gradient(1.0, None, x)
    assert not needs_gradient(1.0, None, x.detach())
    with torch.no_grad():
        assert not needs_gradient(x)


def test_every_operation_of_the_package_may_be_called_directly():
    for op in (_moe_ffn, _combine, _grouped_gemm, _plan_dispatch):
        assert op._apply is not op.registered or op is _plan_dispatch


def test_a_registered_call_that_is_plain_and_needs_no_gradient_passes_no_wrapper_of_the_registration() -> None:
    callers: list[list[str]] = []

    @operation("moekit_tests::who_calls")
    def who_calls(x: Tensor) -> Tensor:
        callers.append([frame.filename for frame in inspect.stack(0)])
        return x + 1

    who_calls.register_fake(torch.empty_like)
    x = torch.ones(3)
    assert torch.equal(torch.ops.moekit_tests.who_calls(x), x + 1)
    with torch.no_grad():
        torch.ops.moekit_tests.who_calls(torch.ones(3, requires_grad=True))
    with FlopCounterMode(display=False):
        torch.ops.moekit_tests.who_calls(x)
    wrapped = [any(name.endswith("_library/custom_ops.py") for name in names) for names in callers]
    assert wrapped == [False, False, True]
