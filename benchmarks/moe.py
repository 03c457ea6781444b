"""``python -m benchmarks.moe``: times every layer on the workloads asked for and writes records.

Layers that compute the same function get the same weights and the same routing and are compared with
formulas in float32 or wider before anything is timed.
"""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks import ceilings
from benchmarks.environment import environment
from benchmarks.peers import PEERS, peers_named
from benchmarks.records import Record, write
from benchmarks.runner import Plan, run_case, with_ratios
from benchmarks.shapes import DIRECTIONS, DTYPES, GROUPS, PRESETS, named_shapes
from benchmarks.stages import run_stages
from benchmarks.workload import SKEWS, draw

# Forward of up to so many slots is replayed from CUDA graphs, as a decoder would.
GRAPH_SLOTS = 512


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(prog="python -m benchmarks.moe", description=__doc__)
    on_gpu = torch.cuda.is_available()
    names = ", ".join((*GROUPS, *PRESETS))
    found.add_argument("--preset", nargs="+", default=["models"] if on_gpu else ["cpu"], help=f"any of {names}")
    found.add_argument("--tokens", type=int, help="tokens in place of the presets'")
    found.add_argument("--skew", nargs="+", default=["uniform"], choices=SKEWS)
    found.add_argument("--direction", nargs="+", default=list(DIRECTIONS), choices=DIRECTIONS)
    found.add_argument("--peers", nargs="+", help=f"of {', '.join(p.name for p in PEERS)}; all by default")
    found.add_argument("--device", default="cuda" if on_gpu else "cpu")
    found.add_argument("--dtype", default="bf16" if on_gpu else "fp32", choices=list(DTYPES))
    found.add_argument("--seconds", type=float, default=1.0, help="about how long each pass is repeated")
    found.add_argument("--no-stages", action="store_true", help="leave out the parts of ours alone")
    found.add_argument("--out", type=Path, help="file of records, written anew")
    return found


def run(options: argparse.Namespace) -> list[Record]:
    """All records of the command."""
    device, dtype = torch.device(options.device), DTYPES[options.dtype]
    shapes = named_shapes(options.preset)
    if options.tokens is not None:
        shapes = {name: shape._replace(tokens=options.tokens) for name, shape in shapes.items()}
    peers = peers_named(options.peers)
    about = environment(device)
    limits = ceilings.measure(device, dtype, options.dtype, min(options.seconds, 1.0))
    found = list(limits)
    cases = [(name, shape, skew) for name, shape in shapes.items() for skew in options.skew]
    with tqdm(total=len(cases) * len(peers), unit="layer") as progress:
        for name, shape, skew in cases:
            workload = draw(shape, skew, device, dtype)
            plan = Plan(options.direction, options.seconds, graphs=shape.slots <= GRAPH_SLOTS)
            for record in run_case(name, workload, options.dtype, peers, plan, lambda peer: _show(progress, peer.name)):
                found.append(record)
            if not options.no_stages:
                found += run_stages(name, workload, options.dtype, options.seconds / 2)
            del workload
    return [dataclasses.replace(record, environment=about) for record in with_ratios(found, limits)]


def _show(progress: "tqdm[Any]", name: str) -> None:
    progress.set_postfix_str(name)
    progress.update()


def line(record: Record) -> str:
    """A record as a line of the terminal."""
    what = f"{record.kind:8} {record.name:28} {record.direction:17} {record.workload()}"
    if record.median_ms is None:
        return f"{what}: {record.status}: {record.reason}"
    rate = "" if record.tflops is None else f", {record.tflops:.3g} TFLOP/s"
    ratio = "" if record.of_dense is None else f", {record.of_dense:.2f} of dense"
    wrong = "" if record.disagrees is None else f", DISAGREES by {record.disagrees:.1e}"
    return f"{what}: {record.median_ms:.4g} ms ({record.p20_ms:.4g} to {record.p80_ms:.4g}){rate}{ratio}{wrong}"


def main(arguments: list[str] | None = None) -> None:
    """Measures, prints, writes."""
    options = parser().parse_args(arguments)
    records = run(options)
    for record in records:
        print(line(record))
    if options.out is not None:
        write(options.out, records)


if __name__ == "__main__":
    main()
