"""One workload, all peers: compared with the formulas first, then measured."""

import dataclasses
import gc
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
from benchmarks.timing import Step, Timing, time_graph, time_steps
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
    """

    directions: Sequence[Direction]
    seconds: float = 1.0
    memory: bool = True
    graphs: bool = False
    compare: bool = True


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
    for peer in peers:
        report(peer)
        record = dataclasses.replace(base, name=peer.name, role=peer.role, remark=peer.remark)
        reason = absent[peer.name]
        if reason is not None:
            yield record.because("absent", reason)
            continue
        try:
            yield from run_peer(record, peer, workload, expected, options)
        except Exception as error:  # of another library, or of memory: recorded, and the others go on
            yield record.because("failed", f"{type(error).__name__}: {first_line(error)}")
        gc.collect()
        if workload.x.is_cuda:
            torch.cuda.empty_cache()


def run_peer(
    record: Record, peer: Peer, workload: Workload, expected: Expected | None, options: CaseOptions
) -> Iterator[Record]:
    """Compares and measures one peer."""
    layer = peer.build(workload)
    if expected is not None and peer.role == "experts":
        errors = agreement(layer, workload, expected)
        record = dataclasses.replace(record, errors=errors, disagrees=disagreement(errors, workload.x.dtype))
    if options.memory:
        record = dataclasses.replace(record, **memory_of(layer, workload))
    shape, itemsize = workload.shape, workload.x.itemsize
    read, touched = shape, workload.touched()
    if peer.role == "ceiling":  # hidden width K F: the weights of K experts
        read, touched = shape._replace(num_experts=shape.top_k), shape.top_k
    for direction in options.directions:
        timing = time_direction(layer, peer, workload, direction, options)
        least = read.least_bytes(direction, touched, itemsize, training=direction != "forward")
        timed = record.timed(timing, flops=shape.flops(direction), least_bytes=least)
        yield dataclasses.replace(timed, direction=direction)


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
    return time_steps(steps, device, seconds=options.seconds)


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

    dense: dict[tuple[object, ...], float] = {}
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
