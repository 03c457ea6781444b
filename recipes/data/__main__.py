"""The command line of data sets: ``python -m recipes.data check``."""

import csv
import shlex
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

import tyro

from recipes.data.arguments import spelled
from recipes.data.leakage import LEAKAGE, Leak, find_leaks, find_shared, leak_lines
from recipes.data.prints import SIMILARITY
from recipes.data.studies import StudySource
from recipes.medvlmoe.config import DataConfig
from recipes.medvlmoe.sources import SPELLING, build_source
from recipes.shared.cli import run_stage
from recipes.shared.fingerprint import check_unchanged
from recipes.shared.outputs import check_outputs
from recipes.shared.runs import write_json

_ABOUT = {"check": "Name what two splits, or two data sets, share: patients, equal images and nearly equal ones."}
_PHANTOM_SIZE = 96


@dataclass(frozen=True)
class CheckSettings:
    """What to check, and how."""

    data: DataConfig = field(default_factory=DataConfig)
    against: str | None = None
    """Another data set, with which the images of this one are compared instead of split with split: a value of --data,
    or NAME=OPTIONS with options of this command, such as 'other=--data other.csv --label-column diagnosis'."""
    similarity: float = SIMILARITY
    """Correlation of small grey copies from which on two images count as nearly equal."""
    workers: int = 2
    """Processes that read images; 0 reads in the main process."""
    show: int = 20
    """Pairs of each kind that are printed."""
    out: Path | None = None
    """Table (csv) of all pairs."""
    run: Path | None = None
    """Folder of a run on these data: the outcome is noted there (leakage.json), for its model card."""


def main(arguments: list[str]) -> None:
    """Runs one command; ``check`` ends with status 1 if splits share anything."""
    run_stage("recipes.data", {"check": _check}, _ABOUT, arguments)


def parse_check(arguments: list[str]) -> CheckSettings:
    """Parses the settings of ``check``."""
    return tyro.cli(
        tyro.conf.configure(tyro.conf.OmitArgPrefixes)(CheckSettings),
        args=arguments,
        prog="python -m recipes.data check",
        description=_ABOUT["check"],
    )


def _check(arguments: list[str]) -> None:
    settings = parse_check(arguments)
    if settings.run is not None:
        check_outputs(settings.run, (LEAKAGE,))
    other = None if settings.against is None else _other(settings)
    source = build_source(settings.data, _PHANTOM_SIZE, allow_crossing=True)
    if settings.run is not None:
        check_unchanged(settings.run, source.splits(), data=settings.data.data)
    how = {"similarity": settings.similarity, "workers": settings.workers, "progress": sys.stderr.isatty()}
    with spelled(SPELLING):
        leaks = find_leaks(source, **how) if other is None else find_shared(source, other, **how)
    for one in (source, other):
        if one is not None:
            _say(one)
    print("\n".join(leak_lines(leaks, settings.show, patients=other is None)))
    if settings.out is not None:
        _write(leaks, settings.out)
        print(f"written: {settings.out} ({len(leaks)} rows)")
    if settings.run is not None:
        counts = {kind: sum(leak.kind == kind for leak in leaks) for kind in ("patient", "pixels", "twins")}
        outcome = {"data": source.name, "similarity": settings.similarity, "counts": counts}
        write_json(settings.run / LEAKAGE, outcome)
        print(f"noted: {settings.run / LEAKAGE}")
    if leaks:
        sys.exit(1)


def _other(settings: CheckSettings) -> StudySource:
    """Opens the set that ``--against`` names."""
    if settings.run is not None:
        raise ValueError("--run notes what the splits of its own data share: leave it out, or leave out --against.")
    text = str(settings.against)
    name, _, options = text.partition("=")
    if not options.lstrip().startswith("-"):
        return build_source(replace(DataConfig(), data=text), _PHANTOM_SIZE, allow_crossing=True)
    try:
        other = parse_check(shlex.split(options))
    except ValueError as error:
        raise ValueError(f"against (--against): options of {name} cannot be split ({error}): {options}") from error
    if other != replace(CheckSettings(), data=other.data):
        raise ValueError(f"against (--against) takes options that open a data set, and no others, got {options!r}.")
    return replace(build_source(other.data, _PHANTOM_SIZE, allow_crossing=True), name=name)


def _say(source: StudySource) -> None:
    """Prints what a data set holds."""
    counts = ", ".join(f"{name} {len(split)}" for name, split in source.splits())
    print(f"{source.name}: {counts} images")
    for note in source.notes:
        print(f"  {note}")


def _write(leaks: list[Leak], path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(Leak._fields)
            writer.writerows(["" if cell is None else cell for cell in leak] for leak in leaks)
    except OSError as error:
        raise ValueError(f"cannot write {str(path)!r}: {error}. Name another file (--out)") from error


if __name__ == "__main__":
    main(sys.argv[1:])
