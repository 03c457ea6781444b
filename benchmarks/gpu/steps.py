"""What a step of a layer costs a Python program: wall time of steps in a row, nothing flushed, nothing compiled."""

import dataclasses
from collections.abc import Callable, Iterator

import torch

from benchmarks.gpu.criteria import RECIPE, STEP_4096
from benchmarks.gpu.setting import Left, Setting
from benchmarks.peers import Layer, peers_named
from benchmarks.peers.base import first_line
from benchmarks.records import Record
from benchmarks.shapes import PRESETS, Direction
from benchmarks.timing import time_wall
from benchmarks.workload import Workload

PRESETS_OF_STEPS = (RECIPE, STEP_4096, "step-16384")
EAGER = ("dense", "moekit-triton", "moekit-layer", "grouped_mm")
FASTER = ("moekit-layer-graphed", "moekit-layer-compiled")
"""The layer without Python's cost, by a CUDA graph and by ``torch.compile``, whose compilation takes its time."""


def steps(setting: Setting, left: Left) -> Iterator[Record]:
    """Yields the wall time of a step and of forward without gradients, of each layer beside the others."""
    for preset in PRESETS_OF_STEPS:
        yield from wall_times(setting, preset, EAGER)
    for name in FASTER:
        for preset in PRESETS_OF_STEPS[:2]:
            if left() < 15 and not setting.tiny:
                yield Record("case", name, preset=preset, status="absent", reason="no time was left")
                continue
            yield from wall_times(setting, preset, (name,))


def wall_times(setting: Setting, preset: str, names: tuple[str, ...]) -> Iterator[Record]:
    """Yields the records of some peers on one workload, which take turns."""
    workload = setting.draw(PRESETS[preset])
    base = Record("case", "", preset=preset, shape=tuple(workload.shape), skew="uniform", dtype=setting.dtype)
    records: dict[str, Record] = {}
    layers: dict[str, Layer] = {}
    for peer in peers_named(list(names)):
        record = dataclasses.replace(base, name=peer.name, role=peer.role, remark=f"{peer.remark}; wall time of a step")
        if reason := peer.absent(workload):
            yield record.because("absent", reason)
            continue
        try:
            layer = peer.build(workload)
            for direction in ("forward", "forward+backward"):
                step_of(layer, workload, direction)()
        except Exception as error:
            yield record.because("failed", f"{type(error).__name__}: {first_line(error)}")
            continue
        records[peer.name], layers[peer.name] = record, layer
    directions: tuple[Direction, ...] = ("forward", "forward+backward") if layers else ()
    blocks = 1 if setting.tiny else 12
    for direction in directions:
        bodies = {name: step_of(layer, workload, direction) for name, layer in layers.items()}
        for name, timing in time_wall(bodies, setting.device, seconds=setting.seconds, blocks=blocks).items():
            timed = records[name].timed(timing, flops=workload.shape.flops(direction))
            yield dataclasses.replace(timed, direction=direction)


def step_of(layer: Layer, workload: Workload, direction: str) -> Callable[[], object]:
    """Returns a step as a training loop takes it: gradients are made anew each time; forward is without gradients."""
    if direction == "forward":

        def forward() -> object:
            with torch.no_grad():
                return layer.forward(workload.x)

        return forward
    x = workload.x.detach().requires_grad_()
    leaves = [x, *layer.leaves.values()]

    def step() -> None:
        for leaf in leaves:
            leaf.grad = None
        layer.forward(x).sum().backward()

    return step
