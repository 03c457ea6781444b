"""Measures one checkout in a process of its own: ``python -m benchmarks.host.measure CHECKOUT REPEATS``.

Prints one line of json: for each case and direction the launches, the calls of torch's operators and the times. The
time is that of the thread's processor, which other processes disturb less than the clock does.
"""

import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import DeviceType

from benchmarks.shapes import Shape

_WARM_UP = 20
# They allocate, look at memory that is there or at properties: no kernel on a GPU.
_NO_KERNEL = frozenset(
    word
    for line in (
        "empty empty_like empty_strided new_empty new_empty_strided resize_ set_ detach detach_ alias lift_fresh to",
        "view view_as reshape _reshape_alias _unsafe_view as_strided expand expand_as squeeze unsqueeze flatten",
        "unflatten select slice narrow split unbind transpose t mT permute",
        "result_type promote_types resolve_conj resolve_neg is_nonzero",
    )
    for word in line.split()
)


class Case(NamedTuple):
    """What is stepped.

    Attributes:
        name: ``"layer"``, ``"compiled layer"`` for that under ``torch.compile``, or ``"experts"`` for plan and experts
            alone.
        shape: Its sizes.
        is_timed: False where torch's own arithmetic, a GPU's work, would be most of the time on a CPU.
    """

    name: str
    shape: Shape
    is_timed: bool = True


CASES = (
    Case("layer", Shape(32, 1024, 4096, 8, 2)),
    Case("layer", Shape(512, 128, 128, 16, 2)),
    Case("layer", Shape(4096, 1024, 1024, 16, 2), is_timed=False),
    Case("compiled layer", Shape(32, 1024, 4096, 8, 2)),
    Case("compiled layer", Shape(512, 128, 128, 16, 2)),
    Case("experts", Shape(32, 1024, 4096, 8, 2)),
    Case("experts", Shape(512, 128, 128, 16, 2)),
    Case("experts", Shape(4096, 1024, 1024, 16, 2), is_timed=False),
)
"""Those with 512 tokens take the kernels of those with 4096, in sizes whose arithmetic takes a CPU no time."""


class Calls(NamedTuple):
    """A layer's forward and backward: of a step, and forward alone without gradients."""

    forward: Callable[[], Tensor]
    backward: Callable[[Tensor], None]
    inference: Callable[[], object]


def calls_of(case: Case) -> Calls:
    """Returns the calls of a case, on the CPU, with bf16 tensors of zeros."""
    from moekit import SparseMoE
    from moekit.experts import FFNExperts
    from moekit.plan import plan_dispatch

    # Of no device first, because initial values are not read and take long to draw.
    shape, options = case.shape, {"impl": "triton", "dtype": torch.bfloat16, "device": "meta"}
    tokens, dim, hidden_dim, num_experts, top_k = shape
    x = torch.zeros(tokens, dim, dtype=torch.bfloat16, requires_grad=True)
    grad = torch.zeros(tokens, dim, dtype=torch.bfloat16)
    if case.name != "experts":
        gates = x
        module: torch.nn.Module = SparseMoE.ffn(dim, hidden_dim, num_experts, top_k, **options)
        called: Callable[[Tensor], Any] = module
        if case.name == "compiled layer":
            torch.compiler.reset()  # code of another shape would be looked at in every call
            called = torch.compile(module, fullgraph=True, dynamic=False)

        def forward() -> Tensor:
            return called(x).output

    else:
        module = FFNExperts(dim, hidden_dim, num_experts, **options)
        ids = torch.arange(tokens * top_k).remainder(num_experts).view(tokens, top_k)
        gates = torch.ones(tokens, top_k, requires_grad=True)

        def forward() -> Tensor:
            return module(x, plan_dispatch(ids, num_experts, impl="triton"), gates)

    module.to_empty(device="cpu")
    leaves = [x, gates, *module.parameters()]

    def backward(out: Tensor) -> None:
        out.backward(grad)
        for leaf in leaves:
            leaf.grad = None

    def inference() -> None:
        with torch.no_grad():
            forward()

    return Calls(forward, backward, inference)


class Counts:
    """What was started between the beginning and the end of a block.

    Attributes:
        launches: Names of our kernels, in their order.
        operators: Calls of torch's operators that would start a kernel on a GPU.
    """

    def __init__(self) -> None:
        self.launches: list[str] = []
        self.operators: Counter[str] = Counter()


@contextmanager
def counting(names: Callable[[], list[str]]) -> Generator[Counts]:
    """Counts what a block starts.

    Args:
        names: Returns the names of all of our kernels that were started so far.
    """
    counts = Counts()
    before = len(names())
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], acc_events=True) as profile:
        yield counts
    counts.launches = names()[before:]
    for event in profile.events():
        if _starts_kernel(event) and not any(map(_starts_kernel, _descendants(event))):
            counts.operators[event.name.removeprefix("aten::")] += 1


def _starts_kernel(event: Any) -> bool:
    namespace, _, name = event.name.partition("::")
    return event.device_type == DeviceType.CPU and namespace == "aten" and name not in _NO_KERNEL


def _descendants(event: Any) -> Generator[Any]:
    for child in event.cpu_children:
        yield child
        yield from _descendants(child)


def _times(call: Callable[[], object], repeats: int) -> list[float]:
    times = []
    for repeat in range(_WARM_UP + repeats):
        start = time.thread_time_ns()
        call()
        if repeat >= _WARM_UP:
            times.append((time.thread_time_ns() - start) / 1e6)
    return times


def count(calls: Calls, names: Callable[[], list[str]]) -> dict[str, Counts]:
    """Returns what inference, forward and backward start, after two steps that compile and are watched, and a third."""
    for _ in range(3):
        calls.backward(calls.forward())
        calls.inference()
    with counting(names) as inference:
        calls.inference()
    with counting(names) as forward:
        out = calls.forward()
    with counting(names) as backward:
        calls.backward(out)
    return {"inference": inference, "forward": forward, "backward": backward}


def measure(stub: Any, case: Case, repeats: int) -> dict[str, Any]:
    """Returns launches, operator calls and times of ``case``, by direction."""
    calls = calls_of(case)
    counts = count(calls, lambda: stub.names)
    result: dict[str, Any] = {name: {"launches": c.launches, "operators": c.operators} for name, c in counts.items()}
    if case.is_timed:
        result["inference"]["times"] = _times(calls.inference, repeats)
        result["step"] = {"times": _times(lambda: calls.backward(calls.forward()), repeats)}
    return result


def main(checkout: str, repeats: int) -> None:
    """Measures every case."""
    # Before this checkout, where ``benchmarks`` comes from.
    sys.path[:0] = [checkout, f"{checkout}/kernels"]
    torch.set_num_threads(1)
    import moekit
    from benchmarks.host.stub import stubbed

    if Path(moekit.__file__).parents[1] != Path(checkout).resolve():
        raise ValueError(f"checkout must hold the package moekit, got {checkout}: {moekit.__file__} was imported.")
    with stubbed() as stub:
        measured = [{"name": case.name, "shape": case.shape, **measure(stub, case, repeats)} for case in CASES]
    print(json.dumps(measured))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
