"""Starts kernels that Triton has compiled before, doing for each call only what changes from call to call.

Triton's own path (``kernel[grid](...)``) binds arguments, describes each of them and all options as text, and looks
that up. Here the first launch of its kind takes that path; the compiled kernel that it returns is kept, and later
launches of the same kind start it directly, as ``compiled[grid](*arguments)`` does.

**Of the same kind** are launches that agree in everything that Triton compiles for: the kernel, the values of
compile-time constants, warps, stages and other options, the dtype of each tensor and which of their addresses are
multiples of 16 bytes, which integers are 1, multiples of 16, or wider than 32 bits (only the last where the kernel says
``do_not_specialize``), which arguments are None, device and driver, and the knobs that Triton reads on every launch
(``debug``, ``instrumentation_mode``). Hooks of launches (profilers) are called as ever. Triton's check that no global
of a kernel was assigned anew is not repeated.

**Triton's own path** is taken by everything else: kernels that are no plain ``JITFunction`` (autotuned, interpreted) or
have hooks before their run, arguments of other types, kernels whose compilation is inspected, and all launches while
:func:`use_prepared_launches` has switched this off.

**A watcher** (:func:`watch_starts`) is told what each launch starts, so that a whole call of an operation can be
repeated (:mod:`moekit_kernels.repeated`).

**What is kept**: at most :data:`MOST_KEPT` kinds; the oldest leaves first. The compiled kernel is referenced weakly:
it lives as long as Triton keeps it, and no module is held back that Triton has unloaded. Tensors, streams and graphs
are not kept. Any number of threads and streams may launch at once: each launch goes to its thread's current stream.
"""

import contextvars
import functools
import threading
import weakref
from collections.abc import Callable, Generator, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, NamedTuple, cast

import torch
import triton
from torch import Tensor
from triton import knobs
from triton.compiler import CompiledKernel
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from moekit_kernels.launch_kind import Signature

MOST_KEPT = 1024
"""Most kinds of launches that are kept."""


class _Kept(NamedTuple):
    """A compiled kernel, and whether its launches need scratch memory, for descriptors that it makes."""

    compiled: "weakref.ref[Any]"
    needs_scratch: bool


class Start(NamedTuple):
    """A launch of a compiled kernel.

    Attributes:
        kernel: The ``@triton.jit`` function.
        compiled: What it was compiled to, referenced weakly.
        needs_scratch: Whether it needs scratch memory.
        grid: Programs in each of three dimensions.
        values: All arguments in the order of the kernel, compile-time constants too.
    """

    kernel: Any
    compiled: "weakref.ref[Any]"
    needs_scratch: bool
    grid: tuple[int, int, int]
    values: tuple[Any, ...]


_jit_function: Any = JITFunction
_triton_driver: Any = driver
_runtime: Any = knobs.runtime
_compilation: Any = knobs.compilation
_HAS_CASTS = hasattr(_compilation, "fpsan_homomorphic_casts")  # a knob of Triton 3.9


class _Switch:
    is_on = True
    num_changes = 0


_kept: dict[Hashable, _Kept] = {}
_signatures: dict[int, Signature] = {}
_lock = threading.Lock()
_watcher: ContextVar[Callable[[Start | None], None] | None] = ContextVar("_watcher", default=None)


def use_prepared_launches(enabled: bool) -> None:
    """Switches prepared launches on (the default) or off, for the process, and drops what was kept.

    Repeated calls (:mod:`moekit_kernels.repeated`) are switched with them.

    Args:
        enabled: Whether a launch of a kind that was launched before bypasses Triton's own path.
    """
    with _lock:
        _Switch.is_on = enabled
        _Switch.num_changes += 1
        _kept.clear()
        _signatures.clear()


def num_kept() -> int:
    """Returns how many kinds of launches are kept."""
    return len(_kept)


def start(kernel: Any, grid: tuple[int, ...], arguments: Mapping[str, Any], num_warps: int, num_stages: int) -> None:
    """Starts ``kernel``; see :func:`moekit_kernels.runtime.launch`."""
    kind: tuple[Any, ...] | None = None
    values: tuple[Any, ...] = ()
    is_inspected = _runtime.add_stages_inspection_hook is not None
    if _Switch.is_on and type(kernel) is _jit_function and not (is_inspected or kernel.pre_run_hooks):
        kind, values = (_signatures.get(id(kernel)) or _signature(kernel)).kind(arguments)
    if kind is None:
        _start_by_triton(kernel, grid, arguments, num_warps, num_stages)
        return
    active = _triton_driver.active
    casts = _HAS_CASTS and _compilation.fpsan_homomorphic_casts
    debug = kernel.debug or _runtime.debug
    key = (kind, num_warps, num_stages, active, debug, _compilation.instrumentation_mode, casts)
    kept = _kept.get(key)
    compiled = None if kept is None else kept.compiled()
    if kept is None or compiled is None:
        _keep(key, _start_by_triton(kernel, grid, arguments, num_warps, num_stages))
        return
    device: int = kind[0]
    if device >= 0 and active.get_current_device() != device:
        with torch.cuda.device(device):
            start(kernel, grid, arguments, num_warps, num_stages)
        return
    stream = active.get_current_stream(max(device, 0))
    three = cast(tuple[int, int, int], grid if len(grid) == 3 else (*grid, 1, 1)[:3])
    watcher = _watcher.get()
    if watcher is not None:
        watcher(Start(kernel, kept.compiled, kept.needs_scratch, three, values))
    enter_hook, exit_hook, metadata = _runtime.launch_enter_hook, _runtime.launch_exit_hook, None
    if _calls_hooks():
        metadata = None if enter_hook is None else compiled.launch_metadata(grid, stream, *values)
    else:
        enter_hook = exit_hook = None
    start_compiled(compiled, kept.needs_scratch, device, stream, three, (metadata, enter_hook, exit_hook), values)


def start_compiled(
    compiled: Any,
    needs_scratch: bool,
    device: int,
    stream: int,
    grid: tuple[int, int, int],
    hooks: tuple[Any, Any, Any],
    values: Sequence[Any],
) -> None:
    """Starts a compiled kernel as ``JITFunction.run`` and ``compiled[grid]`` do.

    Args:
        compiled: The kernel.
        needs_scratch: Whether it needs scratch memory.
        device: Index of the device, which is the current one; -1 on CPU.
        stream: Where it runs.
        grid: Programs in each dimension.
        hooks: What describes the launch to the hooks, the hook before it and the one after it; or None for each.
        values: All arguments in the order of the kernel; a pointer is a tensor or an address.
    """
    settings = (*grid, stream, compiled.function, compiled.packed_metadata, *hooks)
    if needs_scratch:
        # A copy, because the allocator is set for the context, and other kernels have their own.
        contextvars.copy_context().run(_with_allocator, device, compiled.run, *settings, *values)
    else:
        compiled.run(*settings, *values)


def _calls_hooks() -> bool:
    """Returns whether a profiler has hooks of launches."""
    # Chains, empty without a profiler; anything else that stands in their place is a hook.
    enter_hook, exit_hook = _runtime.launch_enter_hook, _runtime.launch_exit_hook
    return bool(getattr(enter_hook, "calls", True) or getattr(exit_hook, "calls", True))


def settings() -> tuple[Hashable, ...] | None:
    """Returns all that decides how a launch of one kind starts, beside its arguments.

    None where every launch has to pass :func:`start`: prepared launches are switched off, compilation is inspected, or
    launches have hooks.
    """
    if not _Switch.is_on or _runtime.add_stages_inspection_hook is not None or _calls_hooks():
        return None
    casts = _HAS_CASTS and _compilation.fpsan_homomorphic_casts
    return _Switch.num_changes, _triton_driver.active, _runtime.debug, _compilation.instrumentation_mode, casts


@contextmanager
def watch_starts(watcher: Callable[[Start | None], None]) -> Generator[None]:
    """Tells ``watcher`` of every launch of this thread: what is started, or None if it takes Triton's own path."""
    token = _watcher.set(watcher)
    try:
        yield
    finally:
        _watcher.reset(token)


def _with_allocator(device: int, run: Any, *arguments: Any) -> None:
    triton.set_allocator(_allocator(device))
    run(*arguments)


@functools.cache
def _allocator(index: int) -> Any:
    device = torch.device("cpu") if index < 0 else torch.device("cuda", index)

    def allocate(size: int, alignment: int, stream: int | None) -> Tensor:
        return torch.empty(size, dtype=torch.int8, device=device)

    return allocate


def _start_by_triton(
    kernel: Any, grid: tuple[int, ...], arguments: Mapping[str, Any], num_warps: int, num_stages: int
) -> Any:
    """Starts a kernel as Triton documents it, and returns what it compiled."""
    watcher = _watcher.get()
    if watcher is not None:
        watcher(None)
    device = next(value.device for value in arguments.values() if isinstance(value, Tensor))
    # Fusion of products and sums is Triton's default today; it is stated here because that is to change.
    options = {"num_warps": num_warps, "num_stages": num_stages, "enable_fp_fusion": True}

    def run() -> Any:
        triton.set_allocator(_allocator(-1 if device.type == "cpu" else device.index))
        return kernel[grid](**arguments, **options)

    guard = cast(AbstractContextManager[Any], nullcontext() if device.type == "cpu" else torch.cuda.device(device))
    with guard:
        return contextvars.copy_context().run(run)


def _signature(kernel: Any) -> Signature:
    with _lock:
        if len(_signatures) >= MOST_KEPT:
            _signatures.clear()
        return _signatures.setdefault(id(kernel), Signature(kernel))


def _keep(key: Hashable, compiled: Any) -> None:
    if not isinstance(compiled, CompiledKernel):  # compilation was refused by a hook, or runs in the background
        return
    with _lock:
        while len(_kept) >= MOST_KEPT:
            del _kept[next(iter(_kept))]
        _kept[key] = _Kept(weakref.ref(compiled), cast(Any, compiled).metadata.global_scratch_size > 0)
