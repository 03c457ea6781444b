"""Launches of a kind that was launched before bypass Triton's own path, and pass what that would pass.

On the CPU, through a driver that starts nothing: what is compiled, looked up and passed is what a GPU would get.
"""

import contextlib
import contextvars
import gc
import threading
import weakref
from typing import Any
from unittest.mock import patch

import pytest
import torch

from moekit_kernels.availability import interpreting, triton_is_installed

if not triton_is_installed() or interpreting():
    pytest.skip("launches of compiled kernels", allow_module_level=True)

import triton
import triton.language as tl
from triton import knobs
from triton.runtime import _allocation
from triton.runtime.jit import JITFunction

from benchmarks.host.stub import StubDriver
from moekit_kernels import kernel_language, launch_kind, prepared
from moekit_kernels.activations import TritonActivation
from moekit_kernels.runtime import launch
from tests.kernels.recorded_launches import Recorded, recorded_launches


@triton.jit(do_not_specialize=["free"])
def scale_kernel(x_ptr, y_ptr, bias_ptr, n, free, factor, FLAG: tl.constexpr, NAME: tl.constexpr, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < n + free
    x = tl.load(x_ptr + offsets, mask=mask)
    if bias_ptr is not None:
        x += tl.load(bias_ptr + offsets, mask=mask)
    if FLAG == 1 and NAME == "scaled":
        x *= factor
    tl.store(y_ptr + offsets, x, mask=mask)


@triton.jit
def copy_tile_kernel(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    tile = tl.make_tensor_descriptor(x_ptr, shape=[n, BLOCK], strides=[BLOCK, 1], block_shape=[BLOCK, BLOCK])
    offsets = tl.arange(0, BLOCK)
    tl.store(y_ptr + offsets[:, None] * BLOCK + offsets[None, :], tile.load([0, 0]))


class Observed:
    """Launches on a stub, with how many took Triton's own path."""

    def __init__(self, stub: StubDriver) -> None:
        self.stub = stub
        self.by_triton = 0

    @property
    def calls(self) -> list[tuple[Any, ...]]:
        return Recorded.calls


@pytest.fixture
def observed(monkeypatch: pytest.MonkeyPatch):
    run = JITFunction.run
    with recorded_launches() as stub:
        observed = Observed(stub)

        def counted(*arguments: Any, **options: Any) -> Any:
            observed.by_triton += 1
            return run(*arguments, **options)

        monkeypatch.setattr(JITFunction, "run", counted)
        yield observed
        for kernel in (scale_kernel, copy_tile_kernel):
            kernel.device_caches.clear()


def _arguments(**changes: Any) -> dict[str, Any]:
    return {
        "x_ptr": torch.zeros(64),
        "y_ptr": torch.zeros(64),
        "bias_ptr": None,
        "n": 48,
        "free": 0,
        "factor": 2.0,
        "FLAG": 1,
        "NAME": "scaled",
        "BLOCK": 64,
        **changes,
    }


def test_the_second_launch_passes_what_tritons_own_path_passes(observed: Observed):
    arguments = _arguments()
    for _ in range(3):
        launch(scale_kernel, (5,), arguments, num_warps=2)
    assert observed.by_triton == 1
    first, *others = observed.calls
    # Grid, stream, function, settings, then metadata of hooks and two hooks, of which there are none, then arguments.
    assert first[:4] == (5, 1, 1, 0)
    assert first[-9:] == tuple(arguments.values())
    for other in others:
        assert [*other[:6], *other[9:]] == [*first[:6], *first[9:]]
        assert other[6:9] == (None, None, None)


def test_the_order_of_arguments_is_that_of_the_kernel(observed: Observed):
    arguments = _arguments()
    launch(scale_kernel, (1, 2, 3), arguments)
    launch(scale_kernel, (1, 2, 3), dict(reversed(arguments.items())))
    assert observed.by_triton == 1
    assert [call[-9:] for call in observed.calls] == [tuple(arguments.values())] * 2


CHANGES = {
    "another multiple of 16": {"n": 32},
    "not a multiple of 16": {"n": 47},
    "one": {"n": 1},
    "zero": {"n": 0},
    "64 bits": {"n": 1 << 31},
    "negative": {"n": -16},
    "float": {"n": 48.0},
    "bool": {"n": True},
    "a number that is not specialised": {"free": 1},
    "one of 64 bits": {"free": -(1 << 31) - 1},
    "another float": {"factor": 3.0},
    "integer for a float": {"factor": 3},
    "another constant": {"FLAG": 2},
    "True for 1": {"FLAG": True},
    "None for 1": {"FLAG": None},
    "1.0 for 1": {"FLAG": 1.0},
    "another name": {"NAME": "other"},
    "another block": {"BLOCK": 32},
}
TENSORS = {
    "not at 16 bytes": lambda: {"x_ptr": torch.zeros(65)[1:]},
    "at 16 bytes": lambda: {"x_ptr": torch.zeros(68)[4:]},
    "the other tensor not at 16 bytes": lambda: {"y_ptr": torch.zeros(65)[1:]},
    "bf16": lambda: {"x_ptr": torch.zeros(64, dtype=torch.bfloat16)},
    "parameter": lambda: {"x_ptr": torch.nn.Parameter(torch.zeros(64))},
    "tensor for None": lambda: {"bias_ptr": torch.zeros(64)},
    "None for a tensor and back": lambda: {"bias_ptr": None},
}


@triton.jit
def _double(x, FACTOR: tl.constexpr):
    return FACTOR * x


@triton.jit
def _double_with_derivatives(x, FACTOR: tl.constexpr):
    return FACTOR * x, FACTOR


@triton.jit
def activation_kernel(x_ptr, y_ptr, ACTIVATION: tl.constexpr, BLOCK: tl.constexpr):
    places = tl.arange(0, BLOCK)
    tl.store(y_ptr + places, kernel_language.act(tl.load(x_ptr + places), ACTIVATION))


def test_an_activation_is_a_constant_by_its_functions_and_numbers(observed: Observed):
    doubles = [TritonActivation(_double, _double_with_derivatives, (factor,)) for factor in (2.0, 3.0, 2.0)]
    arguments = {"x_ptr": torch.zeros(64), "y_ptr": torch.zeros(64), "BLOCK": 64}
    for _ in range(3):
        for activation in ("none", *doubles):
            launch(activation_kernel, (1,), arguments | {"ACTIVATION": activation})
    assert observed.by_triton == 3  # of the equal ones, one
    functions = [call[4] for call in observed.calls]
    assert len(set(functions[:3])) == 3
    assert functions[3] == functions[1]  # equal functions and constants are one compiled kernel
    assert functions[4:8] == functions[:4]
    assert functions[8:] == functions[:4]
    activation_kernel.device_caches.clear()


@pytest.mark.parametrize("change", [*CHANGES, *TENSORS])
def test_launches_take_the_compiled_kernel_that_triton_takes(observed: Observed, change: str):
    arguments = _arguments()
    changed = {**arguments, **(CHANGES[change] if change in CHANGES else TENSORS[change]())}
    for each in (arguments, changed, arguments, changed):
        launch(scale_kernel, (1,), each)
    assert observed.by_triton <= 2
    prepared.use_prepared_launches(False)
    for each in (arguments, changed):
        launch(scale_kernel, (1,), each)
    first, second, *again = _functions(observed)
    assert again == [first, second, first, second]


@pytest.mark.parametrize("option", [{"num_warps": 8}, {"num_stages": 3}])
def test_options_are_compiled_for(observed: Observed, option: dict[str, int]):
    for options in ({}, option, {}, option):
        launch(scale_kernel, (1,), _arguments(), **options)
    first, second, *again = _functions(observed)
    assert first is not second
    assert again == [first, second]
    assert observed.by_triton == 2


def test_the_debug_knob_is_compiled_for(observed: Observed):
    launch(scale_kernel, (1,), _arguments())
    with knobs.runtime.scope():
        knobs.runtime.debug = True
        launch(scale_kernel, (1,), _arguments())
    launch(scale_kernel, (1,), _arguments())
    first, second, third = _functions(observed)
    assert first is third
    assert first is not second


@pytest.mark.parametrize("name", ["launch_enter_hook", "launch_exit_hook"])
def test_hooks_of_launches_are_called(observed: Observed, name: str):
    seen: list[str] = []

    def hook(metadata: Any) -> None:
        seen.append(metadata.get()["name"])

    launch(scale_kernel, (1,), _arguments())
    chain = getattr(knobs.runtime, name)
    chain.add(hook)
    try:
        launch(scale_kernel, (1,), _arguments())
    finally:
        chain.remove(hook)
    launch(scale_kernel, (1,), _arguments())
    assert seen == ["scale_kernel"]
    with knobs.runtime.scope():
        setattr(knobs.runtime, name, hook)
        launch(scale_kernel, (1,), _arguments())
    launch(scale_kernel, (1,), _arguments())
    assert seen == ["scale_kernel"] * 2
    assert observed.by_triton == 1


def test_hooks_before_the_run_of_a_kernel_take_tritons_own_path(observed: Observed):
    seen: list[int] = []
    hook = lambda *arguments, **options: seen.append(options["n"])  # noqa: E731
    launch(scale_kernel, (1,), _arguments())
    scale_kernel.pre_run_hooks.append(hook)
    try:
        launch(scale_kernel, (1,), _arguments(n=32))
    finally:
        scale_kernel.pre_run_hooks.remove(hook)
    assert seen == [32]
    assert observed.by_triton == 2


@pytest.mark.parametrize("arguments", [{"BLOCK": tl.constexpr(64)}, {"NAME": tl.float32}], ids=["constexpr", "dtype"])
def test_arguments_of_other_types_take_tritons_own_path(observed: Observed, arguments: dict[str, Any]):
    for _ in range(2):
        launch(scale_kernel, (1,), _arguments(**arguments))
    assert observed.by_triton == 2
    assert prepared.num_kept() == 0


def test_a_missing_argument_is_tritons_error(observed: Observed):
    arguments = _arguments()
    del arguments["factor"]
    with pytest.raises(TypeError, match="factor"):
        launch(scale_kernel, (1,), arguments)
    with pytest.raises(KeyError, match="other"):
        launch(scale_kernel, (1,), _arguments(other=1))


def test_switched_off_every_launch_takes_tritons_own_path(observed: Observed):
    prepared.use_prepared_launches(False)
    for _ in range(3):
        launch(scale_kernel, (1,), _arguments())
    assert observed.by_triton == 3
    assert prepared.num_kept() == 0


def test_few_kinds_are_kept_and_the_oldest_leaves(observed: Observed, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(prepared, "MOST_KEPT", 2)
    for n in (16, 17, 1, 16):
        launch(scale_kernel, (1,), _arguments(n=n))
    assert prepared.num_kept() == 2
    assert observed.by_triton == 4
    launch(scale_kernel, (1,), _arguments(n=1))
    assert observed.by_triton == 4


def test_integers_and_types_that_are_remembered_are_bounded(observed: Observed, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(launch_kind, "_MOST_INTEGERS", 8)
    monkeypatch.setattr(launch_kind, "_MOST_LAYOUTS", 2)
    for n in range(16, 64, 4):
        launch(scale_kernel, (1,), _arguments(n=n, bias_ptr=torch.zeros(64) if n % 8 else None, free=float(n)))
        launch(scale_kernel, (1,), _arguments(n=n))
    assert len(launch_kind._INTEGERS) <= 8
    assert all(len(signature._layouts) <= 2 for signature in prepared._signatures.values())


def test_nothing_keeps_what_triton_has_dropped(observed: Observed):
    launch(scale_kernel, (1,), _arguments())
    (compiled,) = [weakref.ref(c) for cache in scale_kernel.device_caches.values() for c in cache[0].values()]
    assert prepared.num_kept() == 1
    tensor = torch.zeros(64)
    address = weakref.ref(tensor)
    launch(scale_kernel, (1,), _arguments(x_ptr=tensor))
    scale_kernel.device_caches.clear()
    Recorded.calls.clear()
    del tensor
    gc.collect()
    assert compiled() is None
    assert address() is None
    launch(scale_kernel, (1,), _arguments())
    launch(scale_kernel, (1,), _arguments())
    assert observed.by_triton == 2
    assert prepared.num_kept() == 1


def test_scratch_memory_comes_from_torch_and_the_allocator_of_others_stays(observed: Observed):
    def allocator(size: int, alignment: int, stream: int | None) -> None:
        raise AssertionError("this allocator must not be called")

    arguments = {"x_ptr": torch.zeros(64, 16), "y_ptr": torch.zeros(16, 16), "n": 64, "BLOCK": 16}
    sizes: list[int] = []

    def scenario() -> None:
        triton.set_allocator(allocator)
        for _ in range(3):
            launch(copy_tile_kernel, (1,), arguments)
        assert _allocation._allocator.get() is allocator

    empty = torch.empty
    with patch.object(torch, "empty", lambda *shape, **options: sizes.append(shape[0]) or empty(*shape, **options)):
        contextvars.copy_context().run(scenario)
    assert observed.by_triton == 1
    assert len(sizes) == 3
    assert sizes[0] > 0


def test_launches_without_scratch_memory_run_in_the_callers_context(observed: Observed, monkeypatch):
    launch(scale_kernel, (1,), _arguments())
    contexts: list[bool] = []
    monkeypatch.setattr(prepared.contextvars, "copy_context", lambda: contexts.append(True))
    launch(scale_kernel, (1,), _arguments())
    assert not contexts


def test_several_threads_launch_at_once(observed: Observed):
    kinds = [_arguments(n=n, BLOCK=block) for n in (16, 17, 1) for block in (16, 32)]
    for each in kinds:
        launch(scale_kernel, (1,), each)
    functions = dict(zip(map(str, range(len(kinds))), _functions(observed), strict=True))
    observed.calls.clear()
    failures: list[BaseException] = []

    def run() -> None:
        try:
            for repeat in range(200):
                place = repeat % len(kinds)
                launch(scale_kernel, (place + 1,), kinds[place])
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert observed.by_triton == len(kinds)
    assert len(observed.calls) == 800
    assert all(call[4] is functions[str(call[0] - 1)] for call in observed.calls)


def test_a_launch_for_another_device_than_the_current_one_switches_to_it(observed: Observed, monkeypatch):
    launch(scale_kernel, (1,), _arguments())
    (key, kept), *_ = prepared._kept.items()
    entered: list[int] = []

    @contextlib.contextmanager
    def device(index: int):
        entered.append(index)
        observed.stub.get_current_device = lambda: index
        yield

    def kind(self: Any, arguments: Any) -> tuple[Any, Any]:
        return (index, *key[0][1:]), tuple(arguments.values())

    monkeypatch.setattr(launch_kind.Signature, "kind", kind)
    monkeypatch.setattr(torch.cuda, "device", device)
    for index in (0, 1):
        prepared._kept[((index, *key[0][1:]), *key[1:])] = kept
        launch(scale_kernel, (1,), _arguments())
    assert entered == [1]
    assert observed.by_triton == 1


def _functions(observed: Observed) -> list[Any]:
    return [call[4] for call in observed.calls]
