"""The labelled sets that a call names: of a run's own phantom data, of a folder, or of a table."""

import ast
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from recipes.data.arguments import Spelling, spelled
from recipes.data.evaluation.sets import SETS, open_evaluation_set, set_options
from recipes.data.evaluation.types import EvaluationSet
from recipes.data.phantom import phantom_evaluation_sets, phantom_prompts
from recipes.medmoe.hints import DRAWN
from recipes.medmoe.inference.session import ModelSession

OwnPrompts = dict[str, Any] | None
"""Prompts, in the form of a prompt file, of a set that brings its own."""

PHANTOM = "phantom-"
"""How the names of the phantom sets begin."""

NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")
"""Names that a set may be given: they become names of files."""

LISTS = ("only", "classes", "fractions")
"""Options of the readers that take several values."""

_FLAGS = {"name": "--set", "data": "--set", "root": "--root", "csv": "--csv"}
"""What the commands call those arguments of the readers that are no options."""


def open_sets(
    session: ModelSession,
    *,
    names: Sequence[str] | None = None,
    root: Path | None = None,
    csv: Path | None = None,
    options: Sequence[str] = (),
    name: str | None = None,
) -> list[tuple[EvaluationSet, OwnPrompts]]:
    """Opens sets.

    Args:
        session: The run.
        names: Names of `recipes.data.evaluation.sets.SETS`, or of the run's phantom sets; none takes all
            phantom sets.
        root: Folder or file of the named set. Of several sets, a folder with one folder for each, of its name;
            where that is missing, the folder itself (MedMNIST's files lie side by side).
        csv: A table of paths and labels, instead of names.
        options: ``name=value`` each, for the readers: ``label_column=diagnosis``, ``plane=coronal``.
        name: What to call the one set that is opened, in files and tables; its own name by default.

    Returns:
        The sets, each with its own prompts where no prompt file has them.

    Raises:
        ValueError: If too much is named, a set twice, or one that does not exist; if a name is no name of a file, or
            for several sets.
    """
    sets = _opened(session, tuple(names or ()), root, csv, options)
    if name is None:
        return sets
    if len(sets) > 1:
        raise ValueError(f"name is for one set, got {len(sets)} sets: name one of them (--name, --set).")
    if not NAME.fullmatch(name):
        raise ValueError(
            f"name must be of letters, digits, hyphens, underscores and dots, since files are called by it, got "
            f"{name!r} (--name)."
        )
    ((one, own),) = sets
    return [(replace(one, name=name), own)]


def _opened(
    session: ModelSession, names: tuple[str, ...], root: Path | None, csv: Path | None, options: Sequence[str]
) -> list[tuple[EvaluationSet, OwnPrompts]]:
    if csv is not None:
        if names or root is not None:
            raise ValueError(
                f"csv is a set of its own and goes without set and root, got set={names}, root={root} "
                "(--csv, --set, --root)."
            )
        return [(_open("csv", csv, options), None)]
    if len(set(names)) < len(names):
        raise ValueError(f"set must name each set once, got {names} (--set).")
    drawn = [name for name in names if name.startswith(PHANTOM)]
    if names and len(drawn) < len(names):
        if drawn:
            raise ValueError(f"set: phantom sets and sets on disk go into calls of their own, got {names} (--set).")
        return [(_open(name, _place(name, root), options), None) for name in names]
    if root is not None or options:
        raise ValueError(
            f"set must name what to open, one of {', '.join(SETS)}, when root or options are given, got "
            f"{names or 'none'} (--set)."
        )
    return _phantoms(session, drawn)


def parse_options(options: Sequence[str]) -> dict[str, Any]:
    """Reads ``name=value``: numbers, True, False and None as such, everything else as text.

    ``only``, ``classes`` and ``fractions`` take several values with commas between them.

    Args:
        options: As given on the command line; hyphens in names count as underscores.

    Raises:
        ValueError: If one has no ``=`` or a name is given twice.
    """
    values: dict[str, Any] = {}
    for option in options:
        name, equals, value = option.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or not name:
            raise ValueError(f"options: expected name=value, got {option!r} (--options).")
        if name in values:
            raise ValueError(f"options: {name} is given twice (--options).")
        values[name] = tuple(_literal(one) for one in value.split(",")) if name in LISTS else _literal(value)
    return values


def _open(name: str, root: Path | None, options: Sequence[str]) -> EvaluationSet:
    """Opens one set; the errors of its reader name what is typed on the command line."""
    known = frozenset(set_options(name)) if name in SETS else frozenset[str]()
    with spelled(Spelling(_FLAGS, known)):
        given = parse_options(options)
        if name in SETS and not known.issuperset(given):
            unknown = ", ".join(option for option in given if option not in known)
            raise ValueError(f"options (--options): {name} takes {', '.join(set_options(name))}, got {unknown}.")
        return open_evaluation_set(name, root, **given)


def _place(name: str, root: Path | None) -> Path | None:
    """Returns the set's own folder within the root, if there is one, else the root."""
    return root / name if root is not None and (root / name).is_dir() else root


def _phantoms(session: ModelSession, names: Sequence[str]) -> list[tuple[EvaluationSet, OwnPrompts]]:
    if session.data != DRAWN:
        raise ValueError(
            f"set: the run was trained on {session.data}, which has no phantom sets. Name sets with set "
            f"and root ({', '.join(SETS)}), or give a csv (--set, --root, --csv)."
        )
    sets = {one.name: one for one in phantom_evaluation_sets(session.source())}
    unknown = [name for name in names if name not in sets]
    if unknown:
        raise ValueError(f"set: there is no {', '.join(unknown)}; the phantom sets are {', '.join(sets)}.")
    return [(sets[name], phantom_prompts(name.removeprefix(PHANTOM))) for name in names or sets]


def _literal(text: str) -> Any:
    """Parses a number, True, False or None as such; any other text as it is."""
    try:
        value = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError):
        return text.strip()
    return value if value is None or isinstance(value, bool | int | float) else text.strip()
