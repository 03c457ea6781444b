"""The cells of a table, data sets by models by seeds, and where their figures come from."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipes.shared.sweeps.cells import Cell, Record, SweepFolder


@dataclass(frozen=True)
class Grid:
    """The cells of a table, once they have run.

    Attributes:
        place: The folder.
        sets: Official name of each data set, by its name.
        absent: Why a data set is not here, by its name.
        cells: By data set, model and seed.
        records: By the name of the cell.
    """

    place: SweepFolder
    sets: Mapping[str, str]
    absent: Mapping[str, str]
    cells: Mapping[tuple[str, str, int], Cell]
    records: Mapping[str, Record]

    def runs(self, data_set: str, model: str) -> dict[int, Path]:
        """Returns the run's folder of each seed."""
        own = {seed: cell for (d, m, seed), cell in self.cells.items() if (d, m) == (data_set, model)}
        return {seed: self.place.run(cell.name) for seed, cell in own.items()}

    def records_of(self, data_set: str, model: str) -> dict[int, Record]:
        """Returns the record of each seed that has one."""
        own = {seed: cell for (d, m, seed), cell in self.cells.items() if (d, m) == (data_set, model)}
        return {seed: self.records[cell.name] for seed, cell in own.items() if cell.name in self.records}


def cell_csv_rows(grid: Grid) -> list[dict[str, Any]]:
    """Returns one csv row per cell: its state, and where its figures come from."""
    lines = []
    for name in dict.fromkeys(cell.name for cell in grid.cells.values()):
        record = grid.records.get(name)
        line: dict[str, Any] = {"cell": name, "state": record.state if record else "not run"}
        if record:
            line |= {"seconds": round(record.seconds, 1), "commit": record.commit, "settings": record.settings}
            line |= {"data": record.data, "error": record.error}
        lines.append(line)
    return lines


def provenance_lines(grid: Grid) -> list[str]:
    """Returns what is known of the cells as a whole, with what should give pause.

    Times are in the table of cells alone: a sweep that was killed and gone on with has the same tables.
    """
    records = list(grid.records.values())
    finished = [one for one in records if one.state == "finished"]
    cells = {cell.name for cell in grid.cells.values()}
    failed = len(records) - len(finished)
    lines = [
        f"Cells: {len(finished)} of {len(cells)} finished"
        + (f", {failed} failed" if failed else "")
        + (f", {len(cells) - len(records)} not run" if len(cells) > len(records) else "")
        + "."
    ]
    if finished:
        commits = sorted({one.commit for one in finished})
        lines.append(f"Code: {', '.join(commits)}." + (" Cells differ in their code." if len(commits) > 1 else ""))
    for data_set in grid.sets:
        sums = _data_checksums(grid, data_set)
        if len(sums) > 1:
            lines.append(f"Warning: cells of {data_set} were run on {len(sums)} editions of the data: --redo some.")
        elif sums:
            lines.append(f"Data of {data_set}: checksum {sums[0]}.")
    return lines


def _data_checksums(grid: Grid, data_set: str) -> list[str]:
    of_set: list[Record] = [
        grid.records[cell.name] for (d, _, _), cell in grid.cells.items() if d == data_set and cell.name in grid.records
    ]
    return sorted({one.data for one in of_set if one.data is not None})
