"""``python -m benchmarks moe``: times every layer on the workloads that were named and writes records.

Layers that compute the same function get the same weights and the same routing and are compared with
formulas in float32 or wider before anything is timed.
"""

import argparse
import dataclasses
import time
from typing import Any

import torch
from tqdm import tqdm

from benchmarks import ceilings
from benchmarks.curve_tables import timed_by
from benchmarks.environment import environment
from benchmarks.options import OptionError, add_device, add_dtype, add_out, add_processor_time, add_seconds
from benchmarks.peers import PEERS, peers_named
from benchmarks.records import Record, write
from benchmarks.runner import CaseOptions, run_case, with_ratios
from benchmarks.shapes import DIRECTIONS, DTYPES, GROUPS, PRESETS, named_shapes
from benchmarks.stages import run_stages
from benchmarks.workload import SKEWS, draw

# Forward of up to so many slots is replayed from CUDA graphs, as a decoder would.
GRAPH_SLOTS = 512


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this command."""
    presets = ["models"] if torch.cuda.is_available() else ["cpu"]
    names = [*GROUPS, *PRESETS]
    parser.add_argument(
        "--preset", nargs="+", default=presets, choices=names, metavar="NAME", help=f"of {', '.join(names)}"
    )
    parser.add_argument("--tokens", type=int, help="tokens in place of the presets'")
    parser.add_argument("--skew", nargs="+", default=["uniform"], choices=SKEWS)
    parser.add_argument("--direction", nargs="+", default=list(DIRECTIONS), choices=DIRECTIONS)
    peers = [peer.name for peer in PEERS]
    parser.add_argument(
        "--peer", nargs="+", choices=peers, metavar="NAME", help=f"of {', '.join(peers)}; all by default"
    )
    parser.add_argument("--no-stages", action="store_true", help="leave out the parts of our layer, timed alone")
    add_device(parser)
    add_dtype(parser)
    parser.add_argument(
        "--in-turn", action="store_true", help="layers take turns, repetition by repetition, all in memory at once"
    )
    add_seconds(parser, 1.0)
    add_processor_time(parser)
    add_out(parser, "file of records, written anew")


def run(options: argparse.Namespace) -> list[Record]:
    """Returns all records of the command."""
    device, dtype = torch.device(options.device), DTYPES[options.dtype]
    if options.processor_time and not options.in_turn:
        raise OptionError("--processor-time needs --in-turn: layers timed one after the other are timed by the clock.")
    shapes = named_shapes(options.preset)
    if options.tokens is not None:
        shapes = {name: shape._replace(tokens=options.tokens) for name, shape in shapes.items()}
    peers = peers_named(options.peer)
    about = environment(device)
    limits = ceilings.measure(device, dtype, options.dtype, min(options.seconds, 1.0))
    records = list(limits)
    cases = [(name, shape, skew) for name, shape in shapes.items() for skew in options.skew]
    with tqdm(total=len(cases) * len(peers), unit="layer") as progress:
        for name, shape, skew in cases:
            workload = draw(shape, skew, device, dtype)
            case_options = CaseOptions(
                options.direction,
                options.seconds,
                graphs=shape.slots <= GRAPH_SLOTS,
                in_turn=options.in_turn,
                clock=time.process_time if options.processor_time else time.perf_counter,
            )
            for record in run_case(
                name, workload, options.dtype, peers, case_options, lambda peer: _show(progress, peer.name)
            ):
                remark = timed_by(record.remark, options.processor_time)
                records.append(dataclasses.replace(record, remark=remark))
            if not options.no_stages:
                records += run_stages(name, workload, options.dtype, options.seconds / 2)
            del workload
    return [dataclasses.replace(record, environment=about) for record in with_ratios(records, limits)]


def _show(progress: "tqdm[Any]", name: str) -> None:
    progress.set_postfix_str(name)
    progress.update()


def line(record: Record) -> str:
    """Returns a record as a line of the terminal."""
    what = f"{record.kind:8} {record.name:28} {record.direction:17} {record.workload()}"
    if record.median_ms is None:
        return f"{what}: {record.status}: {record.reason}"
    rate = "" if record.tflops is None else f", {record.tflops:.3g} TFLOP/s"
    ratio = "" if record.of_dense is None else f", {record.of_dense:.2f} of dense"
    wrong = "" if record.disagrees is None else f", DISAGREES by {record.disagrees:.1e}"
    return f"{what}: {record.median_ms:.4g} ms ({record.p20_ms:.4g} to {record.p80_ms:.4g}){rate}{ratio}{wrong}"


def main(options: argparse.Namespace) -> int:
    """Measures, prints, writes."""
    records = run(options)
    for record in records:
        print(line(record))
    if options.out is not None:
        write(options.out, records)
    return 0
