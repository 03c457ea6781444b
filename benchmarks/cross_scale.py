"""``python -m benchmarks cross-scale``: what hard routing of cross-scale experts costs, beside one expert and all.

The pyramid is that of Swin-T at 224 px. Three layers take turns on the same maps: one expert; six experts, one of
them for each sample, with the samples spread over all six; and the same six, all of them for every sample.
"""

import argparse
import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.environment import environment
from benchmarks.options import add_device, add_dtype, add_out, add_seconds
from benchmarks.records import Record, write
from benchmarks.shapes import DTYPES
from benchmarks.timing import Step, time_in_turn
from moekit import CrossScaleExperts, plan_dispatch

ONE, ROUTED, ALL = "cross-scale-k1", "cross-scale-k6-routed", "cross-scale-k6-all"
STEPS = ("forward", "forward+backward")
MOST = 1.25
"""Time per batch of six routed experts relative to one, at most."""


class Pyramid(NamedTuple):
    """Sizes of the maps, and of the layer on them."""

    channels: tuple[int, ...] = (96, 192, 384, 768)
    sizes: tuple[int, ...] = (56, 28, 14, 7)
    batch: int = 16
    dim: int = 192
    num_experts: int = 6


SIZES = Pyramid()
"""Sizes of the command, whose batch and width are options."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this command."""
    parser.add_argument("--batch", type=int, default=SIZES.batch)
    parser.add_argument("--dim", type=int, default=SIZES.dim)
    parser.add_argument("--channels-last", action="store_true", help="maps and weights with channels last")
    add_device(parser)
    add_dtype(parser, "fp32", [name for name in DTYPES if name != "fp64"])
    add_seconds(parser, 60.0)
    add_out(parser, "file of records, written anew")


def run(options: argparse.Namespace, pyramid: Pyramid) -> list[Record]:
    """Returns all records of the command: the cases, then the verdicts."""
    device, dtype = torch.device(options.device), DTYPES[options.dtype]
    layout = torch.channels_last if options.channels_last else torch.contiguous_format
    torch.manual_seed(5)
    maps = [
        torch.randn(pyramid.batch, width, size, size, device=device, dtype=dtype).to(memory_format=layout)
        for width, size in zip(pyramid.channels, pyramid.sizes, strict=True)
    ]
    one, six = (
        CrossScaleExperts(pyramid.channels, pyramid.dim, count, device=device, dtype=dtype).to(memory_format=layout)
        for count in (1, pyramid.num_experts)
    )
    spread = torch.randperm(pyramid.batch).remainder(pyramid.num_experts).unsqueeze(1).to(device)
    gates = torch.ones(pyramid.batch, 1, device=device)

    def routed(experts: CrossScaleExperts, ids: Tensor) -> Callable[[Sequence[Tensor]], Tensor]:
        return lambda maps: experts(maps, plan_dispatch(ids, experts.num_experts), gates)

    layers = {
        ONE: (routed(one, torch.zeros_like(spread)), one, "K=1"),
        ROUTED: (routed(six, spread), six, f"K={pyramid.num_experts}, one expert per sample"),
        ALL: (six.run_all, six, f"K={pyramid.num_experts}, every expert for every sample"),
    }
    order = ", channels last" if options.channels_last else ""
    preset = f"pyramid {pyramid.sizes[0]} to {pyramid.sizes[-1]}, B={pyramid.batch}, D={pyramid.dim}{order}"
    base = Record("case", "", preset=preset, dtype=options.dtype, role="experts")
    cases: list[Record] = []
    for direction in STEPS:
        steps = {name: _step(layer, experts, maps, direction) for name, (layer, experts, _) in layers.items()}
        flops = {name: count_flops(step) for name, step in steps.items()}
        for name, timing in time_in_turn(steps, device, seconds=options.seconds).items():
            case = dataclasses.replace(base, name=name, direction=direction, remark=layers[name][2], flops=flops[name])
            cases.append(case.timed(timing, flops=flops[name]))
    about = environment(device)
    return [dataclasses.replace(record, environment=about) for record in [*cases, *verdicts(cases)]]


def _step(
    layer: Callable[[Sequence[Tensor]], Tensor], experts: CrossScaleExperts, maps: Sequence[Tensor], direction: str
) -> Step:
    if direction == "forward":

        def forward(_: object) -> Tensor:
            with torch.no_grad():
                return layer(maps)

        return Step(forward)
    inputs = [x.detach().requires_grad_() for x in maps]
    upstream: list[Tensor] = []

    def prepare() -> None:
        experts.zero_grad()
        for x in inputs:
            x.grad = None

    def step(_: object) -> Tensor:
        output = layer(inputs)
        if not upstream:
            upstream.append(torch.randn_like(output))
        output.backward(upstream[0])  # the counter of operations does not take torch.autograd.grad
        return output.detach()

    return Step(step, prepare)


def count_flops(step: Step) -> int:
    """Returns the operations of a step, two for a multiply-add, by PyTorch's counter (products and convolutions)."""
    with FlopCounterMode(display=False) as counter:
        step.body(step.prepare())
    return counter.get_total_flops()


def verdicts(records: Sequence[Record]) -> list[Record]:
    """Returns whether six routed experts take at most 1.25 times as long as one, for each direction."""
    judged: list[Record] = []
    for direction in STEPS:
        times = {record.name: record.median_ms for record in records if record.direction == direction}
        one, routed, everything = times[ONE], times[ROUTED], times[ALL]
        assert one is not None
        assert routed is not None
        assert everything is not None
        reason = (
            f"x{routed / one:.3f}: {routed:.4g} ms against {one:.4g} ms; with all experts run "
            f"x{everything / one:.3f}: {everything:.4g} ms"
        )
        title = f"cross-scale experts, {direction}: K=6 hard-routed at most {MOST} times the time of K=1"
        status = "met" if routed <= MOST * one else "missed"
        judged.append(Record("criterion", title, status=status, reason=reason, preset=records[0].preset))
    return judged


def table(records: Sequence[Record]) -> str:
    """Returns the records as a table of the terminal."""
    lines = [f"{'layer':24}{'direction':18}{'median ms':>11}{'p20':>9}{'p80':>9}{'GFLOPs':>9}{'GFLOP/s':>9}"]
    for record in records:
        if record.kind == "criterion":
            lines.append(f"{record.name}: {record.status}, {record.reason}")
            continue
        assert record.flops is not None
        assert record.tflops is not None
        lines.append(
            f"{record.name:24}{record.direction:18}{record.median_ms:11.2f}{record.p20_ms:9.2f}{record.p80_ms:9.2f}"
            f"{record.flops / 1e9:9.2f}{1e3 * record.tflops:9.1f}"
        )
    return "\n".join(lines)


def main(options: argparse.Namespace) -> int:
    """Measures, prints, writes."""
    records = run(options, SIZES._replace(batch=options.batch, dim=options.dim))
    print(table(records))
    if options.out is not None:
        write(options.out, records)
    return 0
