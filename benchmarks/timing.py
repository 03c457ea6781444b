"""How long a step takes: medians and quantiles, on CPU by the clock, on a GPU by events.

A step has a part that is prepared and a part that is timed. On a GPU the L2 cache is flushed in between, as
``triton.testing.do_bench`` does; on both, copies of the input take turns.
"""

import functools
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch

# Flushes per repetition that are queued first, so that a GPU never waits for Python to launch a short kernel.
_HEAD_START = 6


Clock = Callable[[], float]
"""Seconds from any start."""


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
    steps: Mapping[str, Step],
    device: torch.device,
    *,
    seconds: float = 1.0,
    least: int = 5,
    most: int = 200,
    clock: Clock = time.perf_counter,
) -> dict[str, Timing]:
    """Times different steps in turn, so that what else the machine does, or its clock rate, falls on all alike.

    Each round has an order of its own, because a step finds in the caches what the one before it left there.

    Args:
        steps: Steps by name.
        device: Where they run.
        seconds: About how long to repeat all of them together; two more rounds before it warm up.
        least: Fewest rounds.
        most: Most rounds.
        clock: On CPU, seconds from any start.

    Raises:
        ValueError: If there is no step.
    """
    if not steps:
        raise ValueError("steps must hold at least one step, got none.")
    run = _times_on_gpu if device.type == "cuda" else functools.partial(_times_on_cpu, clock=clock)
    row = list(steps.values())
    run(row, device, len(row))
    estimate = sum(run(row, device, len(row))) / 1e3
    rounds = min(most, max(least, int(seconds / max(estimate, 1e-6))))
    order = [place for round_ in range(rounds) for place in random.Random(round_).sample(range(len(row)), len(row))]
    times = run([row[place] for place in order], device, len(order))
    of_place = [[time_ms for time_ms, at in zip(times, order, strict=True) if at == i] for i in range(len(row))]
    return {name: summary(of_place[i]) for i, name in enumerate(steps)}


def time_wall(
    steps: Mapping[str, Callable[[], object]],
    device: torch.device,
    *,
    seconds: float = 1.0,
    blocks: int = 12,
    clock: Clock = time.perf_counter,
) -> dict[str, Timing]:
    """Times steps by the clock, as a Python program feels them: in blocks, after each of which the device is awaited.

    Nothing is flushed and nothing waits between the steps of a block, so a GPU runs behind Python as in training.
    Blocks of different steps take turns.

    Args:
        steps: What is called, by name.
        device: Where they run.
        seconds: About how long to repeat each.
        blocks: Number of blocks of each; a repetition of the result is a block's mean.
        clock: Seconds from any start.

    Raises:
        ValueError: If there is no step.
    """
    if not steps:
        raise ValueError("steps must hold at least one step, got none.")

    def block(step: Callable[[], object], length: int) -> float:
        _wait(device)
        start = clock()
        for _ in range(length):
            step()
        _wait(device)
        return (clock() - start) / length

    lengths = {}
    for name, step in steps.items():
        block(step, 1)
        lengths[name] = max(1, min(500, int(seconds / blocks / max(block(step, 2), 1e-6))))
    rounds = [{name: block(step, lengths[name]) for name, step in steps.items()} for _ in range(blocks)]
    return {name: summary([1e3 * times[name] for times in rounds]) for name in steps}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _times_on_cpu(
    steps: Sequence[Step], device: torch.device, repeats: int, clock: Clock = time.perf_counter
) -> list[float]:
    times = []
    for i in range(repeats):
        step = steps[i % len(steps)]
        prepared = step.prepare()
        start = clock()
        result = step.body(prepared)
        times.append(1e3 * (clock() - start))
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
    step = captured(body, device)
    return time_steps([step], device, seconds=seconds, least=20, most=500)._replace(graph=True)


def captured(body: Callable[[], object], device: torch.device) -> Step:
    """Returns a step that replays ``body`` from a CUDA graph; what ``body`` returned lives as long as the step.

    Raises:
        RuntimeError: If ``body`` cannot be captured.
    """
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

    def replay(_: object) -> object:
        graph.replay()
        return kept

    return Step(replay)
