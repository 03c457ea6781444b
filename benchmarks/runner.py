"""One workload, all peers: compared with the formulas first, then measured."""

import contextlib
import dataclasses
import functools
import gc
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.check import Expected, agreement, disagreement, expected_of
from benchmarks.memory import peaks, saved_for_backward
from benchmarks.peers import Layer, Peer
from benchmarks.peers.base import first_line
from benchmarks.records import Record
from benchmarks.shapes import Direction
from benchmarks.timing import Clock, Step, Timing, captured, time_graph, time_in_turn, time_steps
from benchmarks.workload import Workload

# Copies of the input that take turns, so that a small one is not in the cache each time.
_ROTATED_BYTES = 128 << 20
_MOST_COPIES = 8


class CaseOptions(NamedTuple):
    """How a case is measured.

    Attributes:
        directions: Which passes.
        seconds: About how long each pass is repeated.
        memory: Whether memory is measured.
        graphs: Whether forward is replayed from a CUDA graph where it can be (few tokens).
        compare: Whether outputs and gradients are compared first.
        in_turn: Whether the peers take turns, repetition by repetition, so that a change of the clock rate falls on
            all alike; all of them are in memory at once then.
        least: Fewest repetitions.
        clock: What times on CPU are taken from, of peers that take turns.
    """

    directions: Sequence[Direction]
    seconds: float = 1.0
    memory: bool = True
    graphs: bool = False
    compare: bool = True
    in_turn: bool = False
    least: int = 5
    clock: Clock = time.perf_counter


class Built(NamedTuple):
    """A peer that is ready to be timed.

    Attributes:
        peer: What it is.
        layer: Its function and leaves.
        record: What all its records have in common: errors, memory.
    """

    peer: Peer
    layer: Layer
    record: Record


def run_case(
    preset: str,
    workload: Workload,
    dtype: str,
    peers: Sequence[Peer],
    options: CaseOptions,
    report: Callable[[Peer], None] = lambda peer: None,
) -> Iterator[Record]:
    """Gives the records of every peer on one workload; ``report`` is called before each.

    An absent or failing peer gives one record with the reason.
    """
    base = Record("case", "", preset=preset, shape=tuple(workload.shape), skew=workload.skew, dtype=dtype)
    absent = {peer.name: peer.absent(workload) for peer in peers}
    comparing = options.compare and any(peer.role == "experts" and not absent[peer.name] for peer in peers)
    expected = expected_of(workload) if comparing else None
    waiting: list[Built] = []
    for peer in peers:
        report(peer)
        record = dataclasses.replace(base, name=peer.name, role=peer.role, remark=peer.remark)
        reason = absent[peer.name]
        if reason is not None:
            yield record.because("absent", reason)
            continue
        try:
            built = build(record, peer, workload, expected, options)
            if options.in_turn:
                _try(built, workload, options)
                waiting.append(built)
            else:
                yield from run_peer(built, workload, options)
        except Exception as error:  # of another library, or of memory: recorded, and the others go on
            yield _failed(record, error)
        _free(workload)
    del expected
    if waiting:
        yield from run_in_turn(waiting, workload, options)
        waiting.clear()
        _free(workload)


def _failed(record: Record, error: Exception) -> Record:
    return record.because("failed", f"{type(error).__name__}: {first_line(error)}")


def _free(workload: Workload) -> None:
    if workload.x.is_cuda:
        gc.collect()
        torch.cuda.empty_cache()


def _try(built: Built, workload: Workload, options: CaseOptions) -> None:
    """Runs every pass once: what raises, raises before the turns begin."""
    for direction in options.directions:
        step = _step(built.layer, workload, direction, workload.x.clone())
        step.body(step.prepare())


def build(record: Record, peer: Peer, workload: Workload, expected: Expected | None, options: CaseOptions) -> Built:
    """Builds one peer, compares it with the formulas and measures its memory."""
    layer = peer.build(workload)
    if expected is not None and peer.role == "experts":
        errors = agreement(layer, workload, expected)
        record = dataclasses.replace(record, errors=errors, disagrees=disagreement(errors, workload.x.dtype))
    if options.memory:
        record = dataclasses.replace(record, **memory_of(layer, workload))
    return Built(peer, layer, record)


def run_peer(built: Built, workload: Workload, options: CaseOptions) -> Iterator[Record]:
    """Times one peer alone."""
    for direction in options.directions:
        timing = time_direction(built.layer, built.peer, workload, direction, options)
        yield timed(built, workload, direction, timing)


def run_in_turn(row: Sequence[Built], workload: Workload, options: CaseOptions) -> Iterator[Record]:
    """Times several peers, each pass of all of them in turn."""
    device = workload.x.device
    for direction in options.directions:
        steps: dict[str, Step] = {}
        replayed: set[str] = set()
        for built in row:
            name, layer = built.peer.name, built.layer
            if direction == "forward" and options.graphs and built.peer.graphs and workload.x.is_cuda:
                with contextlib.suppress(RuntimeError), torch.no_grad():  # it reads something on the host after all
                    steps[name] = captured(functools.partial(layer.forward, workload.x), device)
                    replayed.add(name)
            if name not in steps:
                steps[name] = _step(layer, workload, direction, workload.x.clone())
        seconds = options.seconds * len(steps)
        timings = time_in_turn(steps, device, seconds=seconds, least=options.least, clock=options.clock)
        for built in row:
            name = built.peer.name
            yield timed(built, workload, direction, timings[name]._replace(graph=name in replayed))


def timed(built: Built, workload: Workload, direction: Direction, timing: Timing) -> Record:
    """Returns the record of one pass of a peer, with its rates."""
    shape, itemsize = workload.shape, workload.x.itemsize
    read, touched = shape, workload.touched()
    if built.peer.role == "ceiling":  # hidden width K F: the weights of K experts
        read, touched = shape._replace(num_experts=shape.top_k), shape.top_k
    least = read.least_bytes(direction, touched, itemsize, training=direction != "forward")
    record = built.record.timed(timing, flops=shape.flops(direction), least_bytes=least)
    return dataclasses.replace(record, direction=direction)


def memory_of(layer: Layer, workload: Workload) -> dict[str, int]:
    """Returns the bytes kept for backward, and on a GPU the allocator's peaks."""
    x = workload.x.detach().requires_grad_()
    leaves = [x, *layer.leaves.values()]
    inputs = [x, workload.gates, workload.ids, *(t for name, t in layer.leaves.items() if name == "gates")]
    parameters = [tensor for name, tensor in layer.leaves.items() if name != "gates"]
    saved = saved_for_backward(lambda: layer.forward(x), inputs, parameters)
    sizes = {"saved_bytes": saved.intermediates, "saved_input_bytes": saved.inputs}
    if workload.x.is_cuda:

        def backward(output: Tensor) -> object:
            return torch.autograd.grad(output, leaves, workload.grad)

        backward(layer.forward(x))  # workspaces of libraries come with the first step
        peak = peaks(lambda: layer.forward(x), backward, workload.x.device)
        sizes |= {"kept_bytes": peak.kept, "peak_forward_bytes": peak.forward, "peak_step_bytes": peak.step}
    return sizes


def time_direction(layer: Layer, peer: Peer, workload: Workload, direction: Direction, options: CaseOptions) -> Timing:
    """Times one pass of a layer."""
    device = workload.x.device
    if direction == "forward" and options.graphs and peer.graphs and workload.x.is_cuda:
        try:
            with torch.no_grad():
                return time_graph(lambda: layer.forward(workload.x), device, seconds=options.seconds)
        except RuntimeError:  # it reads something on the host after all: timed without a graph, and so recorded
            torch.cuda.synchronize(device)
    copies = max(1, min(_MOST_COPIES, _ROTATED_BYTES // max(1, workload.x.nbytes)))
    steps = [_step(layer, workload, direction, workload.x.clone()) for _ in range(copies)]
    return time_steps(steps, device, seconds=options.seconds, least=options.least)


def _step(layer: Layer, workload: Workload, direction: Direction, x: Tensor) -> Step:
    if direction == "forward":

        def forward(_: object) -> Tensor:
            with torch.no_grad():
                return layer.forward(x)

        return Step(forward)
    x.requires_grad_()
    leaves = [x, *layer.leaves.values()]

    def backward(output: object) -> object:
        assert isinstance(output, Tensor)
        return torch.autograd.grad(output, leaves, workload.grad)

    if direction == "backward":
        return Step(backward, lambda: layer.forward(x))
    return Step(lambda _: backward(layer.forward(x)))


def with_ratios(records: Sequence[Record], ceilings: Sequence[Record]) -> list[Record]:
    """Returns the records with their speed relative to the dense network and to the ceilings of the same run."""
    from benchmarks.ceilings import ceilings_of

    dense: dict[tuple[object, ...], float] = {}  # of one section: ratios are of one process
    for record in records:
        if record.role == "ceiling" and record.median_ms is not None:
            key = record.key()[2:]
            dense[key] = min(record.median_ms, dense.get(key, float("inf")))
    rated = []
    for record in records:
        limits = ceilings_of(list(ceilings), record.dtype)
        fastest = dense.get(record.key()[2:])
        changes: dict[str, float] = {}
        if record.median_ms is not None and fastest is not None and record.kind == "case":
            changes["of_dense"] = fastest / record.median_ms
        if limits is not None and record.tflops is not None:
            changes["of_matmul"] = record.tflops / limits.tflops
        if limits is not None and record.gbps is not None and record.kind != "ceiling":
            changes["of_copy"] = record.gbps / limits.gbps
        rated.append(dataclasses.replace(record, **changes))
    return rated
