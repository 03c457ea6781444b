"""One attempt at a cell, in a process of its own."""

import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
import traceback
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recipes.shared.runs import write_json
from recipes.shared.sweeps.cells import Cell, Record, SweepFolder
from recipes.shared.sweeps.locks import try_lock
from recipes.shared.sweeps.provenance import commit_of_code, data_checksum, file_checksum

SETTINGS = "settings.json"
"""What the run of a cell was begun with."""
DEATH_POLLS = 30
"""Seconds for which the lock of a process that ended is waited for."""


def attempt_cell(place: SweepFolder, cell: Cell, run_cell: Any, files: tuple[str, ...], replaced: str | None) -> None:
    """Runs a cell and writes its record, unless another process works on it or has finished it.

    Args:
        place: Folder of the sweep.
        cell: The cell.
        run_cell: Runs it.
        files: Files of the run that tables read.
        replaced: An earlier attempt whose record does not count.
    """
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with try_lock(place.state(cell.name) / "lock") as held:
        earlier = place.record(cell.name)
        if not held or (earlier is not None and earlier.attempt != replaced):
            return
        if earlier is not None and earlier.state == "finished":  # to be run again, even if this process is killed now
            (place.state(cell.name) / SETTINGS).unlink(missing_ok=True)
        (place.state(cell.name) / "record.json").unlink(missing_ok=True)
        _write_output_to(place.state(cell.name) / "log.txt")
        _prepare(place, cell)
        place.write(_attempt(place, cell, run_cell, files))


def record_death(place: SweepFolder, cell: Cell, exit_code: int, replaced: str | None) -> None:
    """Records that a cell's process ended before it had a result.

    Args:
        place: Folder of the sweep.
        cell: The cell.
        exit_code: Of the process; below 0, minus the signal that ended it.
        replaced: An earlier attempt whose record does not count.
    """
    reason = f"exit code {exit_code}"
    if exit_code < 0:
        reason = signal.Signals(-exit_code).name
        if -exit_code == signal.SIGKILL:
            reason += ": perhaps for lack of memory"
    # Processes that load data hold the lock of the one that started them until they notice its end.
    for _ in range(DEATH_POLLS):
        with try_lock(place.state(cell.name) / "lock") as held:
            record = place.record(cell.name)
            if held and (record is None or record.attempt == replaced):
                place.write(_failure(cell, 0.0, f"its process ended by {reason}"))
            if held:
                return
        time.sleep(1)


def _attempt(place: SweepFolder, cell: Cell, run_cell: Any, files: tuple[str, ...]) -> Record:
    run, started = place.run(cell.name), time.monotonic()
    try:
        result: Mapping[str, Any] = run_cell(cell.settings, run)
        seconds = time.monotonic() - started
        known = {file: file_checksum(run / file) for file in files}
        missing = [file for file, value in known.items() if value is None]
        if missing:
            raise RuntimeError(f"{run} lacks {', '.join(missing)}")
        return Record(
            cell=cell.name,
            state="finished",
            attempt=uuid.uuid4().hex,
            settings=cell.checksum,
            seconds=seconds,
            commit=commit_of_code(),
            data=data_checksum(run),
            result=result,
            files={file: value for file, value in known.items() if value is not None},
        )
    # Whatever goes wrong in a cell is its row of the table; KeyboardInterrupt ends the sweep.
    except (Exception, SystemExit) as error:
        traceback.print_exc()
        text = " ".join(f"{type(error).__name__}: {error}".split())
        return _failure(cell, time.monotonic() - started, text)


def _failure(cell: Cell, seconds: float, error: str) -> Record:
    return Record(
        cell=cell.name,
        state="failed",
        attempt=uuid.uuid4().hex,
        settings=cell.checksum,
        seconds=seconds,
        commit=commit_of_code(),
        error=error,
    )


def _prepare(place: SweepFolder, cell: Cell) -> None:
    """Makes the run's folder, empty unless an attempt with these settings began in it."""
    run, note = place.run(cell.name), place.state(cell.name) / SETTINGS
    begun = note.read_text(encoding="utf-8") if note.is_file() else ""
    if run.exists() and not any(known in begun for known in (cell.checksum, *cell.earlier)):
        note.unlink(missing_ok=True)
        shutil.rmtree(run)
    write_json(note, {"checksum": cell.checksum, "settings": dict(cell.settings)})
    run.mkdir(parents=True, exist_ok=True)


def _write_output_to(path: Path) -> None:
    """Sends what the process writes to a file, and gives it no input."""
    sys.stdout.flush()
    sys.stderr.flush()
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.close(log)


def _end_with_parent() -> None:
    """Ends this process when the one that started it ends, so that no cell runs on unseen."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
