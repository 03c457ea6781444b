"""The cells of a sweep, and the folder in which they and their records lie."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from recipes.shared.runs import write_json
from recipes.shared.sweeps.provenance import checksum, file_checksum

_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


@dataclass(frozen=True)
class Cell:
    """One run of a sweep.

    Attributes:
        name: Also of its folder: parts of letters, digits and ``._+-``, joined by slashes.
        settings: Everything that decides the result, as plain json: another value makes another cell.
        earlier: Checksums under which earlier versions kept the same cell; their records count too.

    Raises:
        ValueError: If the name cannot be that of a folder.
    """

    name: str
    settings: Mapping[str, Any]
    earlier: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Checks the name."""
        if not all(_PART.fullmatch(part) for part in self.name.split("/")):
            raise ValueError(
                f"name of a cell must consist of letters, digits and . _ + -, joined by slashes, got {self.name!r}."
            )

    @property
    def checksum(self) -> str:
        """Of the settings."""
        return checksum(self.settings)

    def is_of(self, settings: str) -> bool:
        """Tells whether a checksum is that of this cell's settings, now or in an earlier version."""
        return settings == self.checksum or settings in self.earlier


@dataclass(frozen=True)
class Record:
    """What is kept of a cell that ran.

    Attributes:
        cell: Its name.
        state: ``"finished"`` or ``"failed"``.
        attempt: Differs between attempts at one cell.
        settings: The checksum of its settings.
        seconds: How long the attempt took.
        commit: Of the code.
        data: Checksum of the data that it was trained on, ``None`` if unknown.
        result: What the cell returned.
        files: Checksum of each file of the run that tables read.
        error: What failed.
    """

    cell: str
    state: Literal["finished", "failed"]
    attempt: str
    settings: str
    seconds: float
    commit: str
    data: str | None = None
    result: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    error: str | None = None


class SweepFolder:
    """The folder of a sweep.

    Args:
        root: Where its files lie.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(root)

    def run(self, name: str) -> Path:
        """Returns the folder of a cell's run."""
        return self.root / "runs" / name

    def state(self, name: str) -> Path:
        """Returns the folder of a cell's lock, log and record."""
        return self.root / "cells" / name

    def record(self, name: str) -> Record | None:
        """Returns the record of a cell.

        Returns:
            ``None`` where there is none, or the file is cut off, or a file of the run has changed since: the cell then
            counts as not run.
        """
        try:
            values = json.loads((self.state(name) / "record.json").read_text(encoding="utf-8"))
            record = Record(**values)
            changed = [file for file, known in record.files.items() if file_checksum(self.run(name) / file) != known]
        except (OSError, ValueError, TypeError, AttributeError):
            return None
        return None if changed or record.cell != name else record

    def write(self, record: Record) -> None:
        """Writes a record in one step."""
        write_json(self.state(record.cell) / "record.json", asdict(record))

    def records(self, cells: Sequence[Cell]) -> dict[str, Record]:
        """Returns the records that there are of cells with these very settings, by name."""
        records = {cell.name: self.record(cell.name) for cell in cells}
        by_name = {cell.name: cell for cell in cells}
        return {name: one for name, one in records.items() if one is not None and by_name[name].is_of(one.settings)}
