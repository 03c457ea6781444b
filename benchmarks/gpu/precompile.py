"""Compiles kernels in many processes at once, into Triton's own cache on disk: timing never waits for a compiler.

The launches are those of whole layers, recorded on tensors of the CPU that nothing reads or writes; each goes through
Triton's own ``JITFunction.run(warmup=True)``, so the cache has exactly the keys that a launch on the GPU looks for. No
process but the one that measures needs the GPU: a driver that only names the target stands in for it.
"""

import functools
import importlib
import multiprocessing
import pkgutil
import time
import warnings
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor, nn

import moekit_kernels
from benchmarks.peers.base import first_line
from benchmarks.shapes import Shape
from moekit import FFNExperts, SparseMoE, TopKRouter, plan_dispatch
from moekit_kernels import eager, runtime
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


class Call(NamedTuple):
    """A call of a kernel, as values that can be sent to another process.

    Attributes:
        module: Where the kernel is defined.
        name: Of the kernel.
        args: Its arguments by position; a dtype stands for a tensor, whose address divides by 16.
        kwargs: Its arguments by name, and options of the compiler.
        config: Which of its configurations, of an autotuned kernel.
    """

    module: str
    name: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    config: int | None = None


@functools.cache
def settle_keys() -> None:
    """Computes the part of each kernel's key that its source gives, in one order in every process.

    Under Triton 3.6 the key of some kernels depends on which other kernels had theirs computed before, so that two
    processes would not find each other's code in the cache.
    """
    from triton.runtime.jit import JITFunction

    modules = (one.name for one in pkgutil.walk_packages(moekit_kernels.__path__, "moekit_kernels."))
    for name in sorted(name for name in modules if name.rpartition(".")[2].startswith("kernel")):
        for value in vars(importlib.import_module(name)).values():
            if isinstance(value, JITFunction):
                _ = value.cache_key


def calls_of(layers: Sequence[tuple[Shape, torch.dtype]], target: Target) -> list[Call]:
    """Returns the calls of layers of these sizes, with gradients and without, each piece of code once."""
    from benchmarks.compiled.specialize import specialize
    from benchmarks.host.stub import stubbed

    unique: dict[str, Call] = {}
    on_gpu = (
        patch.object(runtime, "target_of", lambda device: target),
        patch.object(eager, "can_read", lambda tensor: False),  # which a GPU would have to be awaited for
    )
    for shape, dtype in layers:
        with stubbed(), on_gpu[0], on_gpu[1], runtime.record(target) as launches:
            _run_once(shape, dtype)
        for one in launches:
            options = {"num_warps": one.num_warps, "num_stages": one.num_stages, "enable_fp_fusion": True}
            kwargs = {name: _plain(value) for name, value in one.arguments.items()} | options
            call = Call(one.kernel.__module__, one.kernel.__name__, (), kwargs)
            unique.setdefault(specialize(one, target).key, call)
    return list(unique.values())


def _run_once(shape: Shape, dtype: torch.dtype) -> None:
    """Runs experts alone and a whole layer, without gradients and with; weights and tokens are never written."""

    def empty(*size: int) -> Tensor:
        return torch.empty(size, dtype=dtype)

    tokens, dim, hidden_dim, num_experts, top_k = shape
    experts = FFNExperts(dim, hidden_dim, num_experts, impl="triton", device="meta", dtype=dtype)
    experts.up_proj = nn.Parameter(empty(num_experts, 2 * hidden_dim, dim))
    experts.down_proj = nn.Parameter(empty(num_experts, dim, hidden_dim))
    layer = SparseMoE(TopKRouter(dim, num_experts, top_k, impl="triton", dtype=dtype), experts, impl="triton")
    ids, gates = torch.zeros(tokens, top_k, dtype=torch.int64), torch.ones(tokens, top_k).requires_grad_()

    def alone(x: Tensor) -> Tensor:
        return experts(x, plan_dispatch(ids, num_experts, impl="triton"), gates)

    def whole(x: Tensor) -> Tensor:
        return layer(x).output

    for run, leaves in ((alone, (gates, *experts.parameters())), (whole, tuple(layer.parameters()))):
        with torch.no_grad():
            run(empty(tokens, dim))
        x = empty(tokens, dim).requires_grad_()
        torch.autograd.grad(run(x), [x, *leaves], empty(tokens, dim))


def _plain(value: Any) -> Any:
    return value.dtype if isinstance(value, Tensor) else value


def _stand_in(value: Any) -> Any:
    return torch.empty(0, dtype=value, device="meta") if isinstance(value, torch.dtype) else value


@contextmanager
def collect_autotuned() -> Generator[list[Call]]:
    """Collects the calls of autotuned kernels instead of tuning and running them: results are uninitialised.

    Each configuration is a call of its own.
    """
    from triton.runtime.autotuner import Autotuner

    calls: list[Call] = []

    def collect(self: Any, *args: Any, **kwargs: Any) -> None:
        kwargs = {name: _plain(value) for name, value in kwargs.items() if name not in ("grid", "warmup")}
        call = Call(self.base_fn.__module__, self.base_fn.__name__, tuple(map(_plain, args)), kwargs)
        calls.extend(call._replace(config=i) for i in range(len(self.configs)))

    before = Autotuner.run
    Autotuner.run = collect
    try:
        yield calls
    finally:
        Autotuner.run = before


def compile_calls(calls: Sequence[Call], target: Target, workers: int) -> Iterator[Compiled]:
    """Compiles calls, equal ones once, in ``workers`` processes; yields results as they come."""
    unique = list({repr(call): call for call in calls}.values())
    if workers == 1:
        settle_keys()
        with named_driver(target):
            yield from map(_compile, unique)
        return
    # Fresh processes: Triton starts threads, and a fork does not survive those.
    context = multiprocessing.get_context("spawn")
    with context.Pool(min(workers, max(len(unique), 1)), _begin, (target,)) as pool:
        yield from pool.imap_unordered(_compile, unique)


def tune_quickly(calls: Sequence[Call], warmup: int = 5, rep: int = 20) -> None:
    """Lets the collected kernels of this process try each configuration for milliseconds."""
    import triton.testing

    for module, name in {(call.module, call.name) for call in calls}:
        tuner: Any = getattr(importlib.import_module(module), name)
        tuner._do_bench = functools.partial(triton.testing.do_bench, warmup=warmup, rep=rep)


_life = ExitStack()
"""What a process of the pool holds for all of its life."""


def _begin(target: Target) -> None:
    settle_keys()
    _life.enter_context(named_driver(target))


def _compile(call: Call) -> Compiled:
    start = time.monotonic()
    try:
        kernel: Any = getattr(importlib.import_module(call.module), call.name)
        kwargs = {name: _stand_in(value) for name, value in call.kwargs.items()}
        if call.config is not None:
            kwargs |= kernel.configs[call.config].all_kwargs()
            kernel = kernel.fn
        with warnings.catch_warnings():  # about how other libraries write their kernels
            warnings.simplefilter("ignore")
            kernel.run(*map(_stand_in, call.args), grid=(1,), warmup=True, **kwargs)
    except Exception as error:  # Triton's compilers raise many types; the section that launches it will say so too
        return Compiled(call.name, time.monotonic() - start, f"{type(error).__name__}: {first_line(error)}")
    return Compiled(call.name, time.monotonic() - start)
