"""How long a step takes: medians and quantiles, on CPU by the clock, on a GPU by events.

A step has a part that is prepared and a part that is timed. On a GPU the L2 cache is flushed in between, as
``triton.testing.do_bench`` does; on both, copies of the input take turns.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch

# Flushes per repetition that are queued first, so that a GPU never waits for Python to launch a short kernel.
_HEAD_START = 6


class Step(NamedTuple):
    """One repetition.

    Attributes:
        body: What is timed; it gets what ``prepare`` returned.
        prepare: What comes before.
    """

    body: Callable[[object], object]
    prepare: Callable[[], object] = lambda: None


class Timing(NamedTuple):
    """Times in milliseconds; ``graph`` is whether a CUDA graph was replayed."""

    median_ms: float
    p20_ms: float
    p80_ms: float
    repeats: int
    graph: bool = False


def summary(times_ms: Sequence[float], graph: bool = False) -> Timing:
    """Returns the median and quantiles of times.

    Raises:
        ValueError: If there are none.
    """
    if not times_ms:
        raise ValueError("times_ms must hold at least one time, got none.")
    ordered = sorted(times_ms)
    if len(ordered) == 1:
        return Timing(ordered[0], ordered[0], ordered[0], 1, graph)
    tenths = statistics.quantiles(ordered, n=10, method="inclusive")
    return Timing(statistics.median(ordered), tenths[1], tenths[7], len(ordered), graph)


def time_steps(
    steps: Sequence[Step],
    device: torch.device,
    *,
    seconds: float = 1.0,
    least: int = 5,
    most: int = 200,
    warm_up: int = 3,
) -> Timing:
    """Times steps in turn, for about ``seconds``, each repetition alone.

    Args:
        steps: The same step on copies of its input.
        device: Where it runs.
        seconds: About how long to repeat, warm-up not counted.
        least: Fewest repetitions.
        most: Most repetitions.
        warm_up: Repetitions before: compilation, autotuning, clocks.

    Raises:
        ValueError: If there is no step.
    """
    if not steps:
        raise ValueError("steps must hold at least one step, got none.")
    run = _times_on_gpu if device.type == "cuda" else _times_on_cpu
    estimate = run(steps, device, 1)[0] / 1e3
    if estimate < seconds:  # a first run may hold a compilation; one that is slow in itself is warm after it
        estimate = statistics.median(run(steps, device, max(warm_up - 1, 1))) / 1e3
    repeats = min(most, max(least, int(seconds / max(estimate, 1e-6))))
    return summary(run(steps, device, repeats))


def time_in_turn(
    steps: Mapping[str, Step], device: torch.device, *, seconds: float = 1.0, least: int = 5, most: int = 200
) -> dict[str, Timing]:
    """Times different steps in turn, so that what else the machine does falls on all alike.

    Args:
        steps: Steps by name.
        device: Where they run.
        seconds: About how long to repeat all of them together; one more round before it warms up.
        least: Fewest rounds.
        most: Most rounds.

    Raises:
        ValueError: If there is no step.
    """
    if not steps:
        raise ValueError("steps must hold at least one step, got none.")
    run = _times_on_gpu if device.type == "cuda" else _times_on_cpu
    for step in steps.values():
        run([step], device, 1)
    estimate = sum(run([step], device, 1)[0] for step in steps.values()) / 1e3
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(min(most, max(least, int(seconds / max(estimate, 1e-6))))):
        for name, step in steps.items():
            times[name] += run([step], device, 1)
    return {name: summary(row) for name, row in times.items()}


def _times_on_cpu(steps: Sequence[Step], device: torch.device, repeats: int) -> list[float]:
    times = []
    for i in range(repeats):
        step = steps[i % len(steps)]
        prepared = step.prepare()
        start = time.perf_counter()
        result = step.body(prepared)
        times.append(1e3 * (time.perf_counter() - start))
        del result
    return times


def _times_on_gpu(steps: Sequence[Step], device: torch.device, repeats: int) -> list[float]:
    flush = l2_flush(device)
    events = []
    for _ in range(min(_HEAD_START * repeats, 600)):
        flush()
    for i in range(repeats):
        step = steps[i % len(steps)]
        prepared = step.prepare()
        flush()
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        step.body(prepared)
        end.record()
        events.append((start, end))
    torch.cuda.synchronize(device)
    return [start.elapsed_time(end) for start, end in events]


def l2_flush(device: torch.device) -> Callable[[], object]:
    """Returns a function that writes four times the L2 cache."""
    size = 4 * torch.cuda.get_device_properties(device).L2_cache_size
    return torch.empty(max(size, 1 << 26) // 4, dtype=torch.int32, device=device).zero_


def time_graph(body: Callable[[], object], device: torch.device, *, seconds: float = 0.5) -> Timing:
    """Captures ``body`` in a CUDA graph and times its replay, with the L2 cache flushed before each."""
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(3):
            body()
    torch.cuda.current_stream(device).wait_stream(stream)
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = body()
    timing = time_steps([Step(lambda _: graph.replay())], device, seconds=seconds, least=20, most=500)
    del kept
    return timing._replace(graph=True)
