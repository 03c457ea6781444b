"""The data sets of a table, as the command line names them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from recipes.data.chest.sets import CHEST_SETS, split_name
from recipes.data.medmnist.files import find_file
from recipes.medvlmoe.config import DataConfig
from recipes.shared.extras import require
from recipes.shared.sweeps.named_options import NAME, named_options


@dataclass(frozen=True)
class DataSet:
    """A data set of a table.

    Attributes:
        name: In the table, and of folders.
        options: Options of ``train`` that open it.
    """

    name: str
    options: tuple[str, ...]


def parse_data_sets(entries: Sequence[str]) -> list[DataSet]:
    """Reads what ``--data-sets`` names.

    Args:
        entries: Each a value of ``--data``, or ``NAME=OPTIONS`` with options of ``train``, or a TOML file with a line
            ``NAME = "OPTIONS"`` for each set.

    Raises:
        ValueError: If an entry is none of these, a file cannot be read, or a name repeats.
    """
    if not entries:
        raise ValueError("data_sets (--data-sets) must name at least one data set.")
    sets = [one for entry in entries for one in _parse(entry)]
    names = [one.name for one in sets]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"data_sets (--data-sets) must have different names, got {', '.join(twice)} more than once.")
    return sets


def official_name(data: str) -> str:
    """Returns the name under which papers know a data set: that of a chest set or a MedMNIST flag, else ``data``."""
    chest = split_name(data)
    return chest[0] if chest else Path(data).name.removesuffix(".npz")


def why_absent(config: DataConfig) -> str | None:
    """Tells why a data set is not here; ``None`` if it is, damaged or not.

    Args:
        config: What opens it.
    """
    chest = split_name(config.data)
    if chest is not None:
        return None if Path(chest[1]).is_dir() else f"no folder {chest[1]}"
    name = config.data.lower()
    if name.endswith((".csv", ".csv.gz", ".npz")):
        return None if Path(config.data).is_file() else f"no file {config.data}"
    info = require("medmnist", "MedMNIST sets").INFO
    if name not in info or config.download:
        return None
    try:
        find_file(name, size=config.data_size, root=config.data_root, download=False, info=info)
    except ValueError as error:
        return str(error).removeprefix("data: ")
    return None


def _parse(entry: str) -> list[DataSet]:
    named = named_options(entry, "data_sets (--data-sets)", ("--data",))
    if named is not None:
        return [DataSet(name, options) for name, options in named.items()]
    chest = split_name(entry) if entry.partition(":")[0] in CHEST_SETS else None
    name = chest[0] if chest else re.sub(r"[^A-Za-z0-9._+-]", "-", Path(entry).stem)
    if not NAME.fullmatch(name):
        raise ValueError(f"data_sets (--data-sets): {entry!r} gives no name for a folder. Write NAME=OPTIONS.")
    return [DataSet(name, ("--data", entry))]
