"""``python -m benchmarks compare OLD NEW``: what became slower or faster beyond noise; status 1 if anything did slower.

The noise of a pair is a floor plus half the spread (80th minus 20th percentile, over the median) of both.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from benchmarks.options import OptionError
from benchmarks.records import Record, read

Verdict = Literal["slower", "faster", "same", "more memory", "less memory"]


class Difference(NamedTuple):
    """One case in both files.

    Attributes:
        new: The later record.
        ratio: Its time (or memory) over the earlier one's.
        noise: How far the ratio may be from 1 by chance.
        verdict: What it means.
    """

    new: Record
    ratio: float
    noise: float
    verdict: Verdict


def check_same_device(old: Sequence[Record], new: Sequence[Record]) -> None:
    """Raises ``OptionError`` unless all records are of one device with one number of threads."""
    places = [
        {(r.environment.get("device"), r.environment.get("threads")) for r in records if r.median_ms is not None}
        for records in (old, new)
    ]
    if len(places[0] | places[1]) > 1:
        one, other = (
            ", ".join(f"{device} ({threads} threads)" for device, threads in sorted(p, key=str)) for p in places
        )
        raise OptionError(
            f"old and new must be of the same device and threads, got {one} and {other}: pass --across-devices "
            "to compare them all the same."
        )


def compare(old: Sequence[Record], new: Sequence[Record], floor: float = 0.05) -> list[Difference]:
    """Returns the differences of all cases and stages that were measured in both, in the order of ``new``."""
    before = {record.key(): record for record in old}
    differences = []
    for record in new:
        earlier = before.get(record.key())
        if earlier is None or record.kind not in ("case", "stage"):
            continue
        if record.median_ms is not None and earlier.median_ms is not None:
            ratio, noise = record.median_ms / earlier.median_ms, floor + spread(earlier) + spread(record)
            slower, faster = ratio > 1 + noise, ratio < 1 / (1 + noise)
            differences.append(Difference(record, ratio, noise, "slower" if slower else "faster" if faster else "same"))
        if record.saved_bytes and earlier.saved_bytes and record.direction == "forward":
            ratio = record.saved_bytes / earlier.saved_bytes
            if abs(ratio - 1) > 0.01:
                differences.append(Difference(record, ratio, 0.01, "more memory" if ratio > 1 else "less memory"))
    return differences


def spread(record: Record) -> float:
    """Returns half the distance of the 20th and 80th percentiles, relative to the median."""
    if not record.median_ms or record.p20_ms is None or record.p80_ms is None:
        return 0.0
    return (record.p80_ms - record.p20_ms) / (2 * record.median_ms)


def missing(old: Sequence[Record], new: Sequence[Record]) -> list[Record]:
    """Returns the records that were measured before and are not now."""
    measured = {record.key() for record in new if record.median_ms is not None}
    return [r for r in old if r.median_ms is not None and r.kind in ("case", "stage") and r.key() not in measured]


def line(difference: Difference) -> str:
    """Returns a difference as a line."""
    record = difference.new
    what = f"{record.name} {record.direction}, {record.workload()}"
    return f"{difference.verdict:11} x{difference.ratio:.3f} (noise {100 * difference.noise:.0f} %)  {what}"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this command."""
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--floor", type=float, default=0.05, help="noise that any two runs have")
    parser.add_argument("--across-devices", action="store_true", help="compare records of different devices")


def main(options: argparse.Namespace) -> int:
    """Prints what changed; 1 if a case became slower, keeps more memory or is gone."""
    old, new = read(options.old), read(options.new)
    if not options.across_devices:
        check_same_device(old, new)
    differences = compare(old, new, options.floor)
    for difference in sorted(differences, key=lambda d: -d.ratio):
        if difference.verdict != "same":
            print(line(difference))
    gone = missing(old, new)
    for record in gone:
        print(f"gone         {record.name} {record.direction}, {record.workload()}")
    counts = {verdict: sum(d.verdict == verdict for d in differences) for verdict in ("slower", "faster", "same")}
    print(", ".join(f"{count} {verdict}" for verdict, count in counts.items()) + f", {len(gone)} gone")
    return int(bool(gone) or any(d.verdict in ("slower", "more memory") for d in differences))
