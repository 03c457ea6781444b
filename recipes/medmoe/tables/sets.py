"""The labelled sets of a table, as the command line names them."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tyro

from recipes.data.evaluation.sets import SETS
from recipes.data.phantom.modalities.findings import MODALITIES
from recipes.medmoe.choices import NearDuplicates, Split
from recipes.medmoe.data.labelled_sets import PHANTOM
from recipes.medmoe.hints import DRAWN
from recipes.shared.sweeps.named_options import named_options

SETTING = "sets (--sets)"


@dataclass(frozen=True, kw_only=True)
class SetOptions:
    """Options of ``zero-shot`` that open a set."""

    set: str | None = None
    """One of the sets that the recipe knows."""
    root: Path | None = None
    """Folder or file of the set."""
    csv: Path | None = None
    """A table of paths and labels instead."""
    options: tuple[str, ...] = ()
    """name=value each, for the reader of the set."""
    prompts: str | None = None
    """Prompt file; by default the set's own."""
    templates: bool = False
    """Put class names into plain sentences where there is none."""
    modality: str | None = None
    """Kind of the images, where the set does not say it."""
    split: Split = "test"
    """Which studies; of a linear probe always the test split."""
    near_duplicates: NearDuplicates = "count"
    """Count images that are equal or nearly equal to pretraining images, leave them out, or do not look for them."""

    def to_json(self) -> dict[str, Any]:
        """Returns the options as plain types."""
        values = asdict(self)
        return values | {"root": _text(self.root), "csv": _text(self.csv), "options": list(self.options)}


@dataclass(frozen=True)
class TableSet:
    """A column of a table.

    Attributes:
        name: In the table, and of folders.
        options: What opens it.
    """

    name: str
    options: SetOptions


def parse_sets(entries: Sequence[str], root: Path | None) -> list[TableSet]:
    """Reads what ``--sets`` names.

    Args:
        entries: Each ``phantom`` (the drawn sets of runs on drawn data), the name of a set that the recipe knows,
            ``NAME=OPTIONS`` with options of ``zero-shot``, or a TOML file with a line ``NAME = "OPTIONS"`` for each.
        root: Folder of the sets that are named alone; one of its own for each if there is one of its name.

    Raises:
        ValueError: If an entry is none of these, or a name repeats.
    """
    sets = [one for entry in entries for one in _parse(entry, root)]
    names = [one.name for one in sets]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or not sets:
        got = f"{', '.join(twice)} more than once" if twice else "none"
        raise ValueError(f"{SETTING} must have different names, at least one, got {got}.")
    return sets


def is_drawn(one: TableSet) -> bool:
    """Returns whether a set is one of those that runs on drawn data bring along."""
    return str(one.options.set).startswith(PHANTOM)


def why_absent(one: TableSet, data: str) -> str | None:
    """Tells why a set is not here; ``None`` if it is, damaged or not.

    Args:
        one: The set.
        data: What the models of the table are pretrained on, as for ``pretrain --data``.
    """
    if is_drawn(one):
        return None if data == DRAWN else f"drawn sets belong to runs on drawn data, not to {data}"
    for option, place in (("root", one.options.root), ("csv", one.options.csv)):
        if place is not None and not place.exists():
            return f"no {place} (--{option})"
    if one.options.csv is None and one.options.root is None:
        return f"no folder: pass --sets {one.name}='--set {one.options.set} --root FOLDER', or --root"
    return None


def _parse(entry: str, root: Path | None) -> list[TableSet]:
    if entry == DRAWN:
        return [TableSet(f"{PHANTOM}{kind}", SetOptions(set=f"{PHANTOM}{kind}")) for kind in MODALITIES]
    if entry in SETS and entry != "csv":
        own = root / entry if root is not None and (root / entry).exists() else root
        return [TableSet(entry, SetOptions(set=entry, root=own))]
    named = named_options(entry, SETTING, ("--set", "--csv"))
    if named is None:
        raise ValueError(f"{SETTING} must be {DRAWN}, one of {', '.join(SETS)}, or NAME=OPTIONS, got {entry!r}.")
    return [TableSet(name, _options(name, options)) for name, options in named.items()]


def _options(name: str, options: Sequence[str]) -> SetOptions:
    parsed = tyro.cli(SetOptions, args=list(options), prog=f"{SETTING} {name}")
    if (parsed.set is None) == (parsed.csv is None):
        raise ValueError(f"{SETTING}: {name} must have --set or --csv, not both.")
    return parsed


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)
