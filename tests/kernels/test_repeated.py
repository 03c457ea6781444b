"""Calls of a kind that was called before start the same kernels, with the pointers of the call.

On the CPU, through a driver that starts nothing: what is allocated and passed is what a GPU would get.
"""

import gc
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from moekit_kernels.availability import interpreting, triton_is_installed

if not triton_is_installed() or interpreting():
    pytest.skip("launches of compiled kernels", allow_module_level=True)

import triton
import triton.language as tl
from triton import knobs

from benchmarks.host.stub import StubDriver
from moekit_kernels import prepared, repeated
from moekit_kernels.configs import override as override_configs
from moekit_kernels.eager import Operation, operation
from moekit_kernels.moe_ffn.gathers import override as override_gathers
from moekit_kernels.runtime import launch, record
from moekit_kernels.targets import SM_90
from tests.kernels.recorded_launches import Recorded, recorded_launches


@triton.jit
def move_kernel(source, target, n, factor, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(target + offsets, factor * tl.load(source + offsets, mask=offsets < n), mask=offsets < n)


def _move(source: Tensor, target: Tensor, factor: float) -> None:
    launch(move_kernel, (4,), {"source": source, "target": target, "n": source.numel(), "factor": factor, "BLOCK": 16})


class Calls:
    """How often the test's operation was computed."""

    computed = 0


@operation("moekit_tests::moved")
def _moved(x: Tensor, other: Tensor | None, factor: float, way: str) -> tuple[Tensor, Tensor, Tensor]:
    """Returns ``x`` moved twice, the second half of that, and nothing."""
    Calls.computed += 1
    if way in ("copied", "copied in part"):
        x = (x[1:] if way == "copied in part" else x).clone(memory_format=torch.contiguous_format)
    if way == "read":
        factor = float(x.sum())
    first = torch.empty_like(x)
    _move(x, first, factor)
    second = x.new_empty(x.shape[0])
    _move(first if other is None else other[8:], second, factor)
    if way == "copied last":
        return first, x.clone(memory_format=torch.contiguous_format), x.new_empty(0, 3)
    out = second[x.shape[0] // 2 :] if way == "view" else x if way in ("input", "copied") else second
    return first if way == "kept" else torch.empty_like(x), out, x.new_empty(0, 3)


@pytest.fixture(autouse=True)
def stub() -> Iterator[StubDriver]:
    with recorded_launches() as stub:
        Calls.computed = 0
        _moved.compute.forget()
        yield stub
        move_kernel.device_caches.clear()


def _call(n: int = 64, factor: float = 2.0, way: str = "kept", **tensors: Any) -> Any:
    return _moved(tensors.get("x", torch.zeros(n)), tensors.get("other"), factor, way)


def _computed(calls: int, **options: Any) -> int:
    """Returns how many of so many calls were computed, not repeated."""
    before = Calls.computed
    for _ in range(calls):
        _call(**options)
    return Calls.computed - before


def _pointers(call: tuple[Any, ...]) -> list[int]:
    """Returns the addresses of source and target of a launch."""
    return [each.data_ptr() if isinstance(each, Tensor) else each for each in call[-5:-3]]


def test_the_third_call_starts_the_same_with_its_own_pointers():
    inputs, outputs = [torch.zeros(64) for _ in range(4)], []
    for x in inputs:
        outputs.append(_call(x=x))
    assert Calls.computed == 2
    assert len(Recorded.calls) == 8
    for number, (x, (first, second, nothing)) in enumerate(zip(inputs, outputs, strict=True)):
        moves = Recorded.calls[2 * number : 2 * number + 2]
        assert [call[:6] for call in moves] == [call[:6] for call in Recorded.calls[:2]]
        assert [call[-3:] for call in moves] == [(64, 2.0, 16)] * 2
        assert _pointers(moves[0]) == [x.data_ptr(), first.data_ptr()]
        assert _pointers(moves[1]) == [first.data_ptr(), second.data_ptr()]
        assert (first.shape, second.shape, nothing.shape) == ((64,), (64,), (0, 3))
    addresses = {tensor.data_ptr() for output in outputs for tensor in output[:2]}
    assert len(addresses) == 8


def test_pointers_into_tensors_keep_their_offset():
    others = [torch.zeros(128) for _ in range(3)]
    for other in others:
        _call(other=other)
    assert Calls.computed == 2
    assert [
        _pointers(call)[0] - other.data_ptr() for call, other in zip(Recorded.calls[1::2], others, strict=True)
    ] == [32] * 3


def test_a_result_may_be_a_view():
    outputs = [_call(way="view")[1] for _ in range(3)]
    assert Calls.computed == 2
    for call, out in zip(Recorded.calls[1::2], outputs, strict=True):
        assert out.shape == (32,)
        assert out.data_ptr() == _pointers(call)[1] + 128


def test_memory_is_free_after_the_last_launch_that_reads_it(monkeypatch: pytest.MonkeyPatch):
    from moekit_kernels import call_record

    alive: list[list[bool]] = []
    buffers: list[weakref.ref[Tensor]] = []
    empty = call_record._fast_empty["cpu"]

    def allocate(*layout: Any) -> Tensor:
        tensor = empty(*layout)
        buffers.append(weakref.ref(tensor))
        return tensor

    run = Recorded.__call__

    def observed(self: Recorded, *arguments: Any) -> None:
        alive.append([buffer() is not None for buffer in buffers])
        run(self, *arguments)

    _computed(2, way="view")
    monkeypatch.setitem(call_record._fast_empty, "cpu", allocate)
    monkeypatch.setattr(Recorded, "__call__", observed)
    output = _call(way="view")
    assert Calls.computed == 2
    # The first result of the first launch is free once the second has read it; what follows are results.
    assert alive == [[True], [True, True]]
    assert [buffer() is not None for buffer in buffers] == [False, True, True, True]
    del output
    assert not any(buffer() is not None for buffer in buffers)


KINDS = {
    "shape": lambda: {"n": 48},
    "shape of as many numbers": lambda: {"x": torch.zeros(64, 1)},
    "strides": lambda: {"x": torch.zeros(128)[::2]},
    "dtype": lambda: {"x": torch.zeros(64, dtype=torch.float16)},
    "alignment": lambda: {"x": torch.zeros(65)[1:]},
    "parameter": lambda: {"x": torch.nn.Parameter(torch.zeros(64), requires_grad=False)},
    "tensor for None": lambda: {"other": torch.zeros(128)},
    "number": lambda: {"factor": 3.0},
    "sign of zero": lambda: {"factor": -0.0},
    "name": lambda: {"way": "view"},
}


@pytest.mark.parametrize("change", KINDS)
def test_another_kind_is_computed(change: str):
    assert _computed(3, factor=0.0) == 2
    options = {"factor": 0.0, **KINDS[change]()}
    assert _computed(3, **options) == 2
    assert _computed(1, factor=0.0) == 0
    assert _computed(1, **options) == 0


def test_an_integer_is_not_its_float(monkeypatch: pytest.MonkeyPatch):
    for factor in (1, 1.0, True):
        assert _computed(3, factor=factor) == 2


def test_a_copy_of_a_tensor_is_made_in_each_call():
    inputs = [torch.full((1,), float(number)).expand(64) for number in range(4)]
    copies = [_call(x=x, way="copied")[1] for x in inputs]
    assert Calls.computed == 2
    for call, x, copy in zip(Recorded.calls[::2], inputs, copies, strict=True):
        assert copy.is_contiguous()
        assert torch.equal(copy, x)
        assert _pointers(call)[0] == copy.data_ptr()


def test_a_copy_that_no_kernel_reads_has_its_values():
    inputs = [torch.full((1,), float(number)).expand(64) for number in range(4)]
    copies = [_call(x=x, way="copied last")[1] for x in inputs]
    assert Calls.computed == 2
    for x, copy in zip(inputs, copies, strict=True):
        assert copy.is_contiguous()
        assert torch.equal(copy, x)


@pytest.mark.parametrize("way", ["copied in part", "read", "input"])
def test_calls_that_do_more_than_launch_are_computed(way: str):
    assert _computed(4, way=way) == 4


def test_tensors_that_share_memory_are_computed():
    x = torch.zeros(128)
    assert _computed(4, x=x, other=x) == 4


def test_halves_of_one_memory_are_told_apart():
    for _ in range(3):
        both = torch.zeros(256)
        _call(x=both[:128], other=both[128:])
        assert _pointers(Recorded.calls[-1])[0] == both.data_ptr() + 4 * 128 + 32
    assert Calls.computed == 2


@pytest.mark.parametrize(
    "block",
    [
        lambda: override_configs({"sm_90": {}}),
        lambda: override_gathers(up=True, grad=True, tokens=True),
    ],
    ids=["tiles", "gathers"],
)
def test_overrides_are_of_the_kind(block: Any):
    assert _computed(3) == 2
    with block():
        assert _computed(3) == 2
    assert _computed(3) == 2


def test_the_switch_of_tf32_is_of_the_kind():
    half = torch.zeros(64, dtype=torch.float16)
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    assert _computed(3) == 2
    matmul.fp32_precision = "tf32"
    try:
        assert _computed(3) == 2
        assert _computed(3, x=half) == 2
    finally:
        matmul.fp32_precision = before
    assert _computed(1) == 0
    assert _computed(1, x=half) == 0


def test_knobs_of_triton_are_of_the_kind():
    assert _computed(3) == 2
    with knobs.runtime.scope():
        knobs.runtime.debug = True
        assert _computed(3) == 2
    assert _computed(1) == 0


def test_switched_off_every_call_is_computed():
    assert _computed(3) == 2
    prepared.use_prepared_launches(False)
    assert _computed(3) == 3
    prepared.use_prepared_launches(True)
    assert _computed(3) == 2


@pytest.mark.parametrize("name", ["launch_enter_hook", "launch_exit_hook"])
def test_a_profilers_hooks_are_called(name: str):
    seen: list[str] = []

    def hook(metadata: Any) -> None:
        seen.append(metadata.get()["name"])

    assert _computed(3) == 2
    chain = getattr(knobs.runtime, name)
    chain.add(hook)
    try:
        assert _computed(1) == 1
    finally:
        chain.remove(hook)
    assert seen == ["move_kernel"] * 2
    assert _computed(1) == 0


def test_hooks_before_the_run_of_a_kernel_are_called():
    seen: list[int] = []
    hook = lambda *arguments, **options: seen.append(options["n"])  # noqa: E731
    assert _computed(3) == 2
    move_kernel.pre_run_hooks.append(hook)
    try:
        assert _computed(1) == 1
    finally:
        move_kernel.pre_run_hooks.remove(hook)
    assert seen == [64] * 2


def test_recorded_launches_are_computed():
    assert _computed(3) == 2
    before = len(Recorded.calls)
    with record(SM_90) as launches:
        assert _computed(1) == 1
    assert len(launches) == 2
    assert len(Recorded.calls) == before


def test_registered_operations_repeat_too():
    """As compiled code and modes call them."""
    for number in range(3):
        with FlopCounterMode(display=False):
            first, second, _ = _call()
        assert _pointers(Recorded.calls[-1]) == [first.data_ptr(), second.data_ptr()]
        assert Calls.computed == min(number + 1, 2)


def test_few_kinds_are_kept_and_the_oldest_leaves(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(repeated, "MOST_KEPT", 2)
    for n in (16, 32, 48):
        assert _computed(3, n=n) == 2
    assert len(_moved.compute._kept) == 2
    assert _computed(1, n=32) == 0
    assert _computed(1, n=16) == 1


def test_layouts_of_arguments_are_bounded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(repeated, "_MOST_LAYOUTS", 2)
    for factor in (1, 1.0, True):
        for other in (None, torch.zeros(128)):
            _call(factor=factor, other=other)
            assert len(_moved.compute._layouts) <= 2


def test_nothing_is_held_and_what_triton_dropped_is_compiled_again():
    tensors = [torch.zeros(64) for _ in range(3)]
    references = [weakref.ref(tensor) for tensor in tensors]
    outputs = [weakref.ref(part) for x in tensors for part in _call(x=x)]
    (compiled,) = [weakref.ref(c) for cache in move_kernel.device_caches.values() for c in cache[0].values()]
    Recorded.calls.clear()
    tensors.clear()
    move_kernel.device_caches.clear()
    gc.collect()
    assert compiled() is None
    assert not any(reference() is not None for reference in (*references, *outputs))
    assert _computed(3) == 2
    assert len(Recorded.calls) == 6


def test_several_threads_call_at_once():
    errors: list[str] = []

    def work(n: int) -> None:
        for _ in range(50):
            x = torch.zeros(n)
            first, second, _ = _call(x=x)
            if (first.shape, second.shape) != ((n,), (n,)):
                errors.append(f"{first.shape}")

    threads = [threading.Thread(target=work, args=(n,)) for n in (16, 32, 48, 16, 32, 48)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert len(Recorded.calls) == 6 * 50 * 2
    for n in (16, 32, 48):  # where two threads compiled, Triton dropped one of the two kernels
        _computed(3, n=n)
    assert _computed(1, n=16) == _computed(1, n=32) == _computed(1, n=48) == 0


def test_an_operation_needs_a_tensor():
    def compute(name: str) -> Tensor:
        return torch.zeros(1)

    with pytest.raises(ValueError, match="annotated as a tensor"):
        Operation("moekit_tests::nothing", compute)
