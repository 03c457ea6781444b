"""``python -m benchmarks curves --out FILE``: how time and memory grow with tokens, experts, top-k and skew.

Every curve changes one number of a base workload; layers take turns at each point. Where the number of experts grows, K
times F stays the same: as many operations at every point, and ever more weights once there are more experts than K.
"""

import argparse
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from tqdm import tqdm

from benchmarks.curve_tables import timed_by
from benchmarks.environment import environment
from benchmarks.moe import line
from benchmarks.options import add_budget, add_device, add_dtype, add_out, add_processor_time, add_seconds
from benchmarks.peers import PEERS, Peer, peers_named
from benchmarks.records import Record, write
from benchmarks.runner import CaseOptions, run_case
from benchmarks.shapes import DTYPES, Direction, Shape
from benchmarks.workload import draw

PASSES: tuple[Direction, ...] = ("forward", "forward+backward")
CURVES = ("tokens", "experts", "top-k", "skew")
"""What grows. Each record's ``preset`` is the name of its curve."""

PEERS_BY_DEFAULT = ("dense", "dense-compiled", "moekit-torch", "moekit-triton", "grouped_mm", "liger")

GPU_BASE = Shape(16384, 2048, 1024, 64, 8)  # OLMoE's widths
CPU_BASE = Shape(1024, 256, 256, 16, 4)


class Point(NamedTuple):
    """One point of a curve.

    Attributes:
        curve: What grows.
        shape: The sizes here.
        skew: How experts are chosen here.
    """

    curve: str
    shape: Shape
    skew: str = "uniform"


def points(base: Shape, most_tokens: int, most_experts: int = 512, curves: Sequence[str] = CURVES) -> list[Point]:
    """Returns the points of all curves through ``base``, each curve from its largest point down.

    The largest comes first because a library that tunes itself once for each width then does so where it matters.
    """
    width = base.top_k * base.hidden_dim
    rows: dict[str, list[Point]] = {
        "tokens": [Point("tokens", base._replace(tokens=tokens)) for tokens in _powers(most_tokens, 4)],
        "experts": [
            Point("experts", base._replace(num_experts=experts, top_k=top_k, hidden_dim=width // top_k))
            for experts, top_k in ((n, min(n, base.top_k)) for n in _powers(most_experts, 2))
        ],
        "top-k": [Point("top-k", base._replace(top_k=top_k)) for top_k in _powers(min(32, base.num_experts), 2)],
        "skew": [Point("skew", base, "uniform" if s == 0 else f"zipf {s:g}") for s in (3, 2, 1.5, 1, 0.5, 0)],
    }
    return [point for name in curves for point in rows[name]]


def points_on(device: torch.device, tiny: bool) -> list[Point]:
    """Returns the points of all curves on a device; with ``tiny`` those of a rehearsal."""
    return points(Shape(4, 16, 16, 4, 2), 4, 4) if tiny else points(*_ends(device))


def _powers(most: int, factor: int) -> list[int]:
    """Returns powers of ``factor`` up to ``most``, and ``most``, from the largest down to 1."""
    powers = [1]
    while powers[-1] * factor < most:
        powers.append(powers[-1] * factor)
    return sorted({*powers, most}, reverse=True)


def _ends(device: torch.device) -> tuple[Shape, int]:
    """Returns the base workload of a device, and the tokens at the end of their curve."""
    return (GPU_BASE, 131072) if device.type == "cuda" else (CPU_BASE, 8192)


def measure(
    point: Point,
    device: torch.device,
    dtype: str,
    peers: Sequence[Peer],
    seconds: float,
    least: int = 5,
    processor_time: bool = False,
) -> Iterator[Record]:
    """Yields the records of one point: time and memory of every peer, which take turns."""
    workload = draw(point.shape, point.skew, device, DTYPES[dtype])
    # Compared with the formulas where that is quick; the other points run the same code.
    compare = point.shape.slots * point.shape.hidden_dim <= 1 << 22 or device.type == "cuda"
    clock = time.process_time if processor_time else time.perf_counter
    options = CaseOptions(PASSES, seconds, compare=compare, in_turn=True, least=least, clock=clock)
    for record in run_case(point.curve, workload, dtype, peers, options):
        yield dataclasses.replace(record, kind="curve", remark=timed_by(record.remark, processor_time))


def curves_within(
    device: torch.device, dtype: str, peers: Sequence[Peer], seconds: float, left: Callable[[], float], tiny: bool
) -> Iterator[Record]:
    """Yields the points of all curves until no time is left; then one record for each curve that is cut short."""
    cut: dict[str, int] = {}
    for point in points_on(device, tiny):
        if left() < 5 and not tiny:
            cut[point.curve] = cut.get(point.curve, 0) + 1
            continue
        yield from measure(point, device, dtype, peers, seconds, 1 if tiny else 5)
    for curve, count in cut.items():
        yield Record("check", f"curve of {curve}", status="absent", reason=f"no time was left for {count} points")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this command."""
    names = [peer.name for peer in PEERS]
    parser.add_argument("--curve", nargs="+", default=list(CURVES), choices=CURVES, help="what grows")
    parser.add_argument(
        "--peer",
        nargs="+",
        default=list(PEERS_BY_DEFAULT),
        choices=names,
        metavar="NAME",
        help=f"of {', '.join(names)}; by default {' '.join(PEERS_BY_DEFAULT)}",
    )
    parser.add_argument("--tokens", type=int, help="tokens at the end of their curve; 131072 on a GPU, 8192 on CPU")
    add_device(parser)
    add_dtype(parser)
    add_seconds(parser, 0.2)
    add_processor_time(parser)
    add_budget(parser, 600.0)
    add_out(parser, "file of records, written anew", required=True)


def main(options: argparse.Namespace) -> int:
    """Measures, prints, writes."""
    device = torch.device(options.device)
    base, most = _ends(device)
    peers = peers_named(options.peer)
    about = environment(device)
    end = time.monotonic() + options.budget
    records: list[Record] = []
    for point in tqdm(points(base, options.tokens or most, curves=options.curve), unit="point"):
        if time.monotonic() > end:
            reason = f"no time was left for {point.shape}, {point.skew}"
            records.append(Record("check", f"curve of {point.curve}", status="absent", reason=reason))
            continue
        records += measure(point, device, options.dtype, peers, options.seconds, processor_time=options.processor_time)
    records = [dataclasses.replace(record, environment=about) for record in records]
    for record in records:
        print(line(record))
    write(options.out, records)
    return 0
