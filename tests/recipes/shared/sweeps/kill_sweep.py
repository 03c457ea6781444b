"""Kills a sweep at random moments and lets it go on: its tables must be those of one that was never killed.

``python -m tests.recipes.shared.sweeps.kill_sweep KILLS SECONDS FOLDER TABLE... -- COMMAND...`` starts the command
again and again, and ends it KILLS times by SIGKILL up to SECONDS after its first cell began: in turn the whole process
group, and the sweep alone, whose cells must then end by themselves. A sweep that gets to its end is followed by a new
one. It prints where each kill hit, and a checksum of each table in FOLDER of every sweep that got to its end. Run it
with 0 KILLS and another FOLDER for the tables to compare with.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from recipes.shared.sweeps.provenance import file_checksum


def begun(folder: str) -> dict[Path, int]:
    """When each cell of the sweep was last begun."""
    return {path: path.stat().st_mtime_ns for path in Path(folder).rglob("settings.json")}


def running(folder: str, before: dict[Path, int]) -> list[str]:
    """The cells begun since ``before`` that have no record, each with the epochs that its run has behind it."""
    cells = []
    for path, moment in begun(folder).items():
        if before.get(path) != moment and not (path.parent / "record.json").exists():
            name = path.parent.relative_to(Path(folder) / "cells")
            histories = (Path(folder) / "runs" / name).rglob("history.jsonl")
            cells.append(f"{name} after {sum(len(one.read_text().splitlines()) for one in histories)} epochs")
    return cells


def kill(command: list[str], folder: str, seconds: float, *, group: bool) -> str | None:
    """Starts the sweep, and kills it within that time after its first cell began.

    Returns:
        What was hit; ``None`` if the sweep got to its end before.
    """
    before = begun(folder)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    while process.poll() is None and begun(folder) == before:
        time.sleep(0.02)
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        hit = running(folder, before)
        if group:
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
        process.wait()
        return ", ".join(hit) or "between cells"
    if process.returncode:
        raise SystemExit(f"the sweep failed with exit code {process.returncode}")
    return None


def main(arguments: list[str]) -> None:
    split = arguments.index("--")
    kills, seconds, folder, *tables = arguments[:split]
    command = arguments[split + 1 :]

    def checksums() -> list[str]:
        return [f"{table} {file_checksum(Path(folder) / table)}" for table in tables]

    moments = random.Random(0)
    hits: list[str] = []
    while len(hits) < int(kills):
        after, group = moments.uniform(0, float(seconds)), len(hits) % 2 == 0
        hit = kill(command, folder, after, group=group)
        if hit is None:
            print(f"a sweep got to its end: {', '.join(checksums())}", flush=True)
            shutil.rmtree(folder)
            continue
        hits.append(hit)
        finished = len(list(Path(folder).rglob("record.json")))
        what = "group" if group else "sweep alone"
        print(f"{len(hits)}: {what} killed after {after:.1f} s, {hit}, {finished} cells finished", flush=True)
    print(f"{sum(hit != 'between cells' for hit in hits)} of {kills} kills hit a running cell")
    subprocess.run(command, check=True)
    print(f"the last sweep got to its end: {', '.join(checksums())}")


if __name__ == "__main__":
    main(sys.argv[1:])
