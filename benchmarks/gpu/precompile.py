"""Compiles kernels in many processes at once, into Triton's own cache on disk: timing never waits for a compiler.

The launches are those of ``benchmarks.compiled.operations``, recorded from meta tensors; each goes through Triton's own
``JITFunction.run(warmup=True)``, so the cache has exactly the keys that a launch on the GPU looks for. No process but
the one that measures needs the GPU: a driver that only names the target stands in for it.
"""

import functools
import importlib
import multiprocessing
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch

from benchmarks.peers.base import first_line
from benchmarks.shapes import Shape
from moekit_kernels.runtime import Launch, record
from moekit_kernels.targets import Target


class Compiled(NamedTuple):
    """One piece of code.

    Attributes:
        kernel: Name of the ``@triton.jit`` function.
        seconds: How long it took; some milliseconds where the cache had it.
        error: Why it does not compile.
    """

    kernel: str
    seconds: float
    error: str = ""


@contextmanager
def named_driver(target: Target) -> Generator[None]:
    """Lets Triton's JIT compile for ``target``, whatever GPU there is; nothing can be launched."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    class Driver:
        """What the JIT asks before it compiles."""

        def get_current_target(self) -> GPUTarget:
            return GPUTarget(target.backend, target.arch, target.warp_size)

        def get_current_device(self) -> int:
            return 0

        def get_current_stream(self, device: int) -> int:
            return 0

    before = driver._active
    driver.set_active(Driver())
    try:
        yield
    finally:
        driver._active = before


def launches_of(layers: Sequence[tuple[Shape, torch.dtype]], target: Target) -> list[Launch]:
    """Returns the launches of layers of these sizes, forward and backward: one for each different piece of code."""
    from benchmarks.compiled import operations
    from benchmarks.compiled.specialize import specialize

    with record(target) as launches:
        for shape, dtype in layers:
            operations.sort(dtype, shape, capped=False)
            operations.ffn(dtype, shape, "swiglu", biased=False)
            operations.route(dtype, shape.tokens, shape.num_experts, shape.top_k, "softmax", False, False)
    return list({specialize(one, target).key: one for one in launches}.values())


def compile_launches(layers: Sequence[tuple[Shape, torch.dtype]], target: Target, workers: int) -> Iterator[Compiled]:
    """Compiles what :func:`launches_of` returns, in ``workers`` processes; yields results as they come."""
    count = len(launches_of(layers, target))
    yield from _side_by_side(functools.partial(_compilers, layers, target), count, target, workers)


def _compilers(layers: Sequence[tuple[Shape, torch.dtype]], target: Target) -> list[tuple[str, Any]]:
    # Each process records the launches anew: that takes milliseconds, and kernels need not be sent.
    compilers = []
    for one in launches_of(layers, target):
        options = {"num_warps": one.num_warps, "num_stages": one.num_stages, "enable_fp_fusion": True}
        run = functools.partial(one.kernel.run, grid=one.grid, warmup=True, **one.arguments, **options)
        compilers.append((one.kernel.__name__, run))
    return compilers


class AutotunedCall(NamedTuple):
    """A call of an autotuned kernel of another library, as values that can be sent to another process.

    Attributes:
        module: Where the kernel is defined.
        name: Of the kernel.
        args: Its arguments by position; a dtype stands for a tensor.
        kwargs: Its arguments by name.
        configs: How many configurations it tries.
    """

    module: str
    name: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    configs: int


@contextmanager
def collect_autotuned() -> Generator[list[AutotunedCall]]:
    """Collects the calls of autotuned kernels instead of tuning and running them: results are uninitialised."""
    from triton.runtime.autotuner import Autotuner

    calls: list[AutotunedCall] = []

    def collect(self: Any, *args: Any, **kwargs: Any) -> None:
        names = (self.base_fn.__module__, self.base_fn.__name__)
        kwargs = {name: _plain(value) for name, value in kwargs.items() if name not in ("grid", "warmup")}
        calls.append(AutotunedCall(*names, tuple(map(_plain, args)), kwargs, len(self.configs)))

    before = Autotuner.run
    Autotuner.run = collect
    try:
        yield calls
    finally:
        Autotuner.run = before


def _plain(value: Any) -> Any:
    return value.dtype if isinstance(value, torch.Tensor) else value


def compile_autotuned(calls: Sequence[AutotunedCall], target: Target, workers: int) -> Iterator[Compiled]:
    """Compiles every configuration of the collected calls, in ``workers`` processes."""
    unique = list({repr(call): call for call in calls}.values())
    count = sum(call.configs for call in unique)
    yield from _side_by_side(functools.partial(_autotuned_compilers, unique), count, target, workers)


def _autotuned_compilers(calls: Sequence[AutotunedCall]) -> list[tuple[str, Any]]:
    compilers = []
    for call in calls:
        tuner = getattr(importlib.import_module(call.module), call.name)
        args, kwargs = [_stand_in(a) for a in call.args], {name: _stand_in(a) for name, a in call.kwargs.items()}
        for config in tuner.configs:
            run = functools.partial(tuner.fn.run, *args, grid=(1,), warmup=True, **kwargs, **config.all_kwargs())
            compilers.append((call.name, run))
    return compilers


def _stand_in(value: Any) -> Any:
    return torch.empty(0, dtype=value, device="meta") if isinstance(value, torch.dtype) else value


def tune_quickly(calls: Sequence[AutotunedCall], warmup: int = 5, rep: int = 20) -> None:
    """Lets the collected kernels of this process try each configuration for milliseconds."""
    import triton.testing

    for module, name in {(call.module, call.name) for call in calls}:
        tuner: Any = getattr(importlib.import_module(module), name)
        tuner._do_bench = functools.partial(triton.testing.do_bench, warmup=warmup, rep=rep)


_work: list[tuple[str, Any]] = []
_life = ExitStack()
"""What a process of the pool holds for all of its life."""


def _begin(make: Callable[[], list[tuple[str, Any]]], target: Target) -> None:
    _life.enter_context(named_driver(target))
    _work.extend(make())


def _compile_one(index: int) -> Compiled:
    return _compile(*_work[index])


def _compile(kernel: str, run: Callable[[], object]) -> Compiled:
    start = time.monotonic()
    try:
        run()
    except Exception as error:  # Triton's compilers raise many types; the section that launches it will say so too
        return Compiled(kernel, time.monotonic() - start, f"{type(error).__name__}: {first_line(error)}")
    return Compiled(kernel, time.monotonic() - start)


def _side_by_side(
    make: Callable[[], list[tuple[str, Any]]], count: int, target: Target, workers: int
) -> Iterator[Compiled]:
    if workers == 1:
        with named_driver(target):
            yield from (_compile(*one) for one in make())
        return
    # Fresh processes: Triton starts threads, and a fork does not survive those.
    context = multiprocessing.get_context("spawn")
    with context.Pool(min(workers, max(count, 1)), _begin, (make, target)) as pool:
        yield from pool.imap_unordered(_compile_one, range(count))
