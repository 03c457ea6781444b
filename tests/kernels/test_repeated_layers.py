"""A repeated step of a layer passes to every kernel what a computed step passes."""

from typing import Any

import pytest
import torch
from torch import Tensor

from moekit_kernels.availability import interpreting, triton_is_installed

if not triton_is_installed() or interpreting():
    pytest.skip("launches of compiled kernels", allow_module_level=True)

from moekit import SparseMoE
from moekit.activations import clamped_swiglu
from moekit_kernels import call_record, repeated
from moekit_kernels.combine import combine
from moekit_kernels.grouped_gemm import grouped_gemm
from moekit_kernels.plan import plan_dispatch
from tests.kernels.recorded_launches import Recorded, recorded_launches

_Launch = tuple[str, tuple[int, ...], list[Any]]


class Memory:
    """Numbers the memory that launches refer to in the order of its first use, and keeps all of it alive."""

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []
        self._numbers: dict[int, int] = {}

    def number_of(self, address: int) -> tuple[int, int]:
        """Returns the number of the memory that holds an address, and how far into it."""
        for tensor in self.tensors:
            storage = tensor.untyped_storage()
            if storage.data_ptr() <= address < storage.data_ptr() + storage.nbytes():
                begin = storage.data_ptr()
                return self._numbers.setdefault(begin, len(self._numbers)), address - begin
        raise AssertionError(f"a kernel got the address {address}, where no tensor is.")

    def of(self, call: tuple[Any, ...], like: tuple[Any, ...]) -> list[Any]:
        """Returns the arguments of ``call``, with numbers in place of the memory where ``like`` has tensors."""
        return [
            self._described(value) if isinstance(other, Tensor) else value
            for value, other in zip(call, like, strict=True)
        ]

    def _described(self, value: Any) -> Any:
        address = value.data_ptr() if isinstance(value, Tensor) else value
        return None if address == 0 else self.number_of(address)


@pytest.fixture
def allocated(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """All buffers that repeated calls allocate."""
    buffers: list[Tensor] = []
    empty = call_record._fast_empty["cpu"]

    def allocate(*layout: Any) -> Tensor:
        buffers.append(empty(*layout))
        return buffers[-1]

    monkeypatch.setitem(call_record._fast_empty, "cpu", allocate)
    return buffers


def _launches_of(step: Any, allocated: list[Tensor]) -> tuple[list[tuple[Any, ...]], list[Tensor], Any]:
    Recorded.calls.clear()
    allocated.clear()
    result = step()
    return list(Recorded.calls), list(allocated), result


def _check(step: Any, inputs: list[Tensor], allocated: list[Tensor]) -> None:
    """Compares the second step, which is computed, with the third and fourth."""
    with recorded_launches():
        step()
        computed, _, result = _launches_of(step, allocated)
        assert computed
        assert all(not any(type(value) is int and value > 1 << 32 for value in call[9:]) for call in computed)
        known = [value for call in computed for value in call if isinstance(value, Tensor)]
        memory = Memory()
        memory.tensors = [*inputs, *known]
        first = [memory.of(call[9:], call[9:]) for call in computed]
        shapes = _layouts(result)
        for _ in range(2):
            again, buffers, result = _launches_of(step, allocated)
            assert _layouts(result) == shapes
            memory = Memory()
            memory.tensors = [*inputs, *buffers, *known]
            second = [memory.of(call[9:], like[9:]) for call, like in zip(again, computed, strict=True)]
            assert [call[:6] for call in again] == [call[:6] for call in computed]
            assert second == first
            assert not any(isinstance(value, Tensor) for call in again for value in call)


def _layouts(result: Any) -> list[Any]:
    return [(each.shape, each.stride(), each.dtype) for each in result]


LAYERS = {
    "few tokens": (32, {}),
    "one token": (1, {}),
    "many tokens": (1024, {}),
    "more slots than are compared with each other": (5000, {}),
    "biases": (300, {"bias": True}),
    "float32": (64, {"dtype": torch.float32}),
    "gelu": (300, {"activation": "gelu"}),
    "a function of gate and value": (300, {"activation": clamped_swiglu(limit=2.5)}),
    "a function of gate and value, few tokens": (16, {"activation": clamped_swiglu(limit=2.5)}),
    "everything again": (300, {"recompute": "all"}),
    "nothing again": (300, {"recompute": "none"}),
    "nothing again, few tokens": (16, {"recompute": "none"}),
    "odd widths": (300, {"dim": 72, "hidden_dim": 40}),
    "one choice": (300, {"top_k": 1}),
    "gradient of a sum": (300, {"expanded": True}),
    "gradient of a sum, few tokens": (16, {"expanded": True}),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers(name: str, allocated: list[Tensor]):
    tokens, options = LAYERS[name]
    settings: dict[str, Any] = {"dim": 128, "hidden_dim": 64, "num_experts": 8, "top_k": 2, "dtype": torch.bfloat16}
    settings |= options
    dim, expanded = settings["dim"], settings.pop("expanded", False)
    with recorded_launches():
        layer = SparseMoE.ffn(**settings, impl="triton")
    x = torch.zeros(tokens, dim, dtype=settings["dtype"], requires_grad=True)
    grad = x.new_zeros(()).expand_as(x) if expanded else torch.zeros_like(x)

    def step() -> list[Tensor]:
        output = layer(x).output
        return [output.detach(), *torch.autograd.grad(output, [x, *layer.parameters()], grad)]

    _check(step, [x.detach(), grad, *map(Tensor.detach, layer.parameters())], allocated)


def _ids(tokens: int = 96) -> Tensor:
    return torch.arange(2 * tokens).remainder(8).view(tokens, 2)


def _all_of(plan: Any) -> list[Tensor]:
    return [each for each in plan if isinstance(each, Tensor)]


PLANS = {
    "few": (96, {}),
    "many": (8192, {}),
    "few with a capacity": (96, {"capacity": 5}),
    "many with a capacity": (8192, {"capacity": 5}),
    "by gate": (96, {"capacity": 5, "drop_policy": "gate"}),
    "many by gate": (8192, {"capacity": 5, "drop_policy": "gate"}),
}


@pytest.mark.parametrize("name", PLANS)
def test_plans(name: str, allocated: list[Tensor]):
    tokens, options = PLANS[name]
    ids, gates, kept = _ids(tokens), torch.zeros(tokens, 2), torch.ones(tokens, 1, dtype=torch.bool)

    def step() -> list[Tensor]:
        return _all_of(plan_dispatch(ids, 8, kept=kept, gates=gates, impl="triton", **options))

    _check(step, [ids, gates, kept], allocated)


def test_products_and_sums(allocated: list[Tensor]):
    ids = _ids()
    x = torch.zeros(192, 64, requires_grad=True)
    weight = torch.zeros(8, 32, 64, requires_grad=True)
    gates = torch.zeros(96, 2, requires_grad=True)
    grad = torch.zeros(96, 32)

    def step() -> list[Tensor]:
        plan = plan_dispatch(ids, 8, impl="triton")
        out = combine(grouped_gemm(x, weight, plan.offsets, impl="triton"), plan, gates)
        return [out.detach(), *torch.autograd.grad(out, [x, weight, gates], grad)]

    _check(step, [ids, grad, *map(Tensor.detach, (x, weight, gates))], allocated)


def test_every_operation_is_repeated(allocated: list[Tensor], monkeypatch: pytest.MonkeyPatch):
    """None of them does more than allocate, view and launch, for operands of the layouts that kernels read."""
    computed: list[str] = []
    call = repeated.Repeatable.__call__

    def observed(self: repeated.Repeatable, *arguments: Any) -> Any:
        compute = self._compute
        monkeypatch.setattr(self, "_compute", lambda *each: computed.append(compute.__name__) or compute(*each))
        try:
            return call(self, *arguments)
        finally:
            monkeypatch.setattr(self, "_compute", compute)

    monkeypatch.setattr(repeated.Repeatable, "__call__", observed)
    with recorded_launches():
        layer = SparseMoE.ffn(128, 64, 8, 2, impl="triton", dtype=torch.bfloat16)
        x = torch.zeros(64, 128, dtype=torch.bfloat16, requires_grad=True)
        for _ in range(2):
            layer(x).output.backward(torch.zeros_like(x))
        assert len(set(computed)) == 5
        computed.clear()
        for _ in range(3):
            layer(x).output.backward(torch.zeros_like(x))
    assert computed == []
