"""Cells that take no time, or as long as they are told, and keep a log of how often they ran.

``python -m tests.recipes.shared.sweeps.stub_cells FOLDER SECONDS [WORKERS]`` runs a sweep of two by two of them.
"""

import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recipes.shared.sweeps import Cell, run_sweep
from recipes.shared.sweeps.tables import write_csv

STEPS = 10


def cell(name: str, **settings: Any) -> Cell:
    return Cell(name, {"value": 1.0} | settings)


def run_stub(settings: Mapping[str, Any], run: Path) -> Mapping[str, Any]:
    """Makes ten steps, each kept in a file, from the first that is not there; then writes its output piece by piece."""
    with Path(settings.get("starts", run / "starts.log")).open("a") as log:
        log.write("start\n")
    if settings.get("error"):
        raise ValueError(settings["error"])
    if settings.get("signal"):
        os.kill(os.getpid(), settings["signal"])
    steps = run / "steps.txt"
    done = len(steps.read_text()) if steps.is_file() else 0
    for _ in range(done, STEPS):
        time.sleep(settings.get("seconds", 0) / STEPS)
        with steps.open("a") as file:
            file.write("x")
    with (run / "output.csv").open("w") as file:
        for i in range(100):
            file.write(f"{i},{settings['value'] * i}\n")
            file.flush()
    return {"total": settings["value"] * len(steps.read_text())}


def two_by_two(seconds: float) -> list[Cell]:
    values = {"a": 1.0, "b": 2.0}
    return [
        cell(f"{data}/{model}", value=values[data] * values[model], seconds=seconds)
        for data in values
        for model in values
    ]


def main(folder: Path, seconds: float, workers: int) -> None:
    cells = two_by_two(seconds)
    records = run_sweep(cells, folder, run_stub, files=("output.csv",), workers=workers, progress=False)
    write_csv(folder / "table.csv", [{"cell": name, **one.result} for name, one in records.items()])


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    main(Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 1)
