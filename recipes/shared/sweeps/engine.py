"""Runs the cells of a sweep, each in a process of its own; any number of sweeps may share a folder."""

import multiprocessing
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from tqdm import tqdm

from recipes.shared.outputs import check_folder
from recipes.shared.report.formats import duration
from recipes.shared.sweeps.attempt import attempt_cell, record_death
from recipes.shared.sweeps.cells import Cell, Record, SweepFolder
from recipes.shared.sweeps.locks import try_lock

POLL_SECONDS = 0.5
"""How often the cells of other processes are looked at."""

RunCell = Callable[[Mapping[str, Any], Path], Mapping[str, Any]]
"""Trains and evaluates a cell: from its settings and the run's folder to its result. It is a function of a module, and
goes on with what a killed attempt left in the folder, or replaces that."""


def run_sweep(
    cells: Sequence[Cell],
    folder: Path,
    run_cell: RunCell,
    *,
    files: Sequence[str] = (),
    workers: int = 1,
    redo: Sequence[str] = (),
    progress: bool = True,
) -> dict[str, Record]:
    """Runs the cells that are not finished.

    A finished cell is kept; one that failed before is tried again. Cells that another process works on are waited for,
    and taken over if that process ends. An error in a cell, or the end of its process, becomes its record, and the
    sweep goes on.

    Args:
        cells: The cells, with different names.
        folder: Of the sweep.
        run_cell: Runs one.
        files: Files of a run that tables read: if one changes, the cell counts as not run.
        workers: Cells at a time.
        redo: Patterns of the names of finished cells to run again; ``"*"`` for all.
        progress: Whether to show a progress bar and a line for each cell.

    Returns:
        The record of each cell, by name.

    Raises:
        ValueError: If names repeat, ``workers`` is below 1, a pattern fits no cell, or a finished cell was run with
            other settings.
    """
    _check(cells, workers, redo)
    check_folder(folder, "--out")
    place = SweepFolder(folder)
    before = {cell.name: place.record(cell.name) for cell in cells}
    _check_settings(cells, before, redo)
    replaced = {
        name: record.attempt
        for name, record in before.items()
        if record is not None and (record.state == "failed" or _matches(name, redo))
    }
    sweep = _Sweep(place, run_cell, tuple(files), replaced)
    with tqdm(total=len(cells), desc="cells", disable=not progress) as bar:
        sweep.run(list(cells), workers, bar)
    records = place.records(cells)
    return {cell.name: records[cell.name] for cell in cells if cell.name in records}


class _Sweep:
    """The cells that one process runs.

    Args:
        place: The folder.
        run_cell: Runs one cell.
        files: Files of a run that tables read.
        replaced: Attempt that does not count, by the name of the cell.
    """

    def __init__(self, place: SweepFolder, run_cell: RunCell, files: tuple[str, ...], replaced: dict[str, str]) -> None:
        self.place, self.run_cell, self.files, self.replaced = place, run_cell, files, replaced
        self.running: dict[BaseProcess, Cell] = {}

    def run(self, waiting: list[Cell], workers: int, bar: Any) -> None:
        """Runs cells until each of them has a record that counts."""
        try:
            while waiting:
                settled = [cell for cell in waiting if self._is_settled(cell)]
                for cell in settled:
                    waiting.remove(cell)
                    bar.update()
                    if not bar.disable:
                        bar.write(self._line(cell), file=sys.stdout)
                self._start(waiting, workers)
                bar.set_postfix_str(", ".join(cell.name for cell in self.running.values()))
                self._wait(bool(waiting))
        finally:
            for process in self.running:
                process.terminate()
            for process in self.running:
                process.join()

    def _line(self, cell: Cell) -> str:
        record = self.place.record(cell.name)
        if record is None or record.state == "finished":
            return f"{cell.name}: finished" + (f", {duration(record.seconds)}" if record else "")
        return f"{cell.name}: failed ({record.error}); log: {self.place.state(cell.name) / 'log.txt'}"

    def _is_settled(self, cell: Cell) -> bool:
        record = self.place.record(cell.name)
        return record is not None and record.attempt != self.replaced.get(cell.name)

    def _start(self, waiting: Sequence[Cell], workers: int) -> None:
        # A server forks a process for each cell: what the recipe imports is imported once, and nothing is left over.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([self.run_cell.__module__])
        busy = {cell.name for cell in self.running.values()}
        for cell in waiting:
            if len(self.running) >= workers:
                return
            if cell.name in busy or not self._is_free(cell):
                continue
            arguments = (self.place, cell, self.run_cell, self.files, self.replaced.get(cell.name))
            process = context.Process(target=attempt_cell, args=arguments)
            process.start()
            self.running[process] = cell

    def _is_free(self, cell: Cell) -> bool:
        """Tells whether no process works on the cell; the process that is then started locks it itself."""
        state = self.place.state(cell.name)
        state.mkdir(parents=True, exist_ok=True)
        with try_lock(state / "lock") as held:
            return held

    def _wait(self, unfinished: bool) -> None:
        """Waits for a process of this sweep or, for a short time, for those of others."""
        if not self.running:
            time.sleep(POLL_SECONDS if unfinished else 0)
            return
        wait([process.sentinel for process in self.running], timeout=POLL_SECONDS)
        for process in [one for one in self.running if one.exitcode is not None]:
            cell = self.running.pop(process)
            process.join()
            if process.exitcode and not self._is_settled(cell):
                record_death(self.place, cell, process.exitcode, self.replaced.get(cell.name))


def _check(cells: Sequence[Cell], workers: int, redo: Sequence[str]) -> None:
    names = [cell.name for cell in cells]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"cells must have different names, got {', '.join(twice)} more than once.")
    if workers < 1:
        raise ValueError(f"workers (--workers) must be at least 1, got {workers}.")
    for pattern in redo:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(f"redo (--redo) must fit the name of a cell, got {pattern!r}. Cells: {', '.join(names)}.")


def _check_settings(cells: Sequence[Cell], before: Mapping[str, Record | None], redo: Sequence[str]) -> None:
    other = [
        cell.name
        for cell in cells
        if (record := before[cell.name]) is not None
        and record.state == "finished"
        and not cell.is_of(record.settings)
        and not _matches(cell.name, redo)
    ]
    if other:
        raise ValueError(
            f"{len(other)} finished cells were run with other settings: {', '.join(other[:5])}. Give the options of "
            "then, another --out, or --redo with their names ('*' for all) to run them again."
        )


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
