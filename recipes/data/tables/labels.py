"""Turns the label columns of a table into one array of 1, 0 and NaN."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from recipes.data.arguments import argument, remedy
from recipes.data.studies import Task

Uncertain = Literal["ignore", "zeros", "ones", "per-label"]
"""What a label of -1 becomes: unknown (NaN), absent or present (CheXpert's U-Ignore, U-Zeros, U-Ones), or for each
finding what `PER_LABEL` says, and unknown for all others."""

PER_LABEL = {"Atelectasis": 1.0, "Edema": 1.0, "Pleural Effusion": 1.0, "Cardiomegaly": 0.0, "Consolidation": 0.0}
"""What an uncertain label of CheXpert's five competition tasks becomes under the policy ``"per-label"``."""

Blank = Literal["ignore", "zeros"]
"""What a blank label becomes: unknown (NaN) or absent."""


def check_choice(name: str, value: object, literal: object) -> None:
    """Refuses a value that is none of a ``Literal``'s.

    Args:
        name: The argument.
        value: Its value.
        literal: The ``Literal``.

    Raises:
        ValueError: Naming the argument, the choices and the value.
    """
    if value not in get_args(literal):
        choices = ", ".join(map(repr, get_args(literal)))
        raise ValueError(f"{argument(name)} must be one of {choices}, got {value!r}")


def is_blank(value: str) -> bool:
    """Tells whether a cell holds nothing: no text, white space or a written NaN."""
    return value.strip().lower() in ("", "nan")


def labels_from_columns(
    columns: Mapping[str, Sequence[str]], *, task: Task, uncertain: Uncertain, blank: Blank, where: str
) -> NDArray[np.float32]:
    """Reads one column per class, each cell 1, 0, -1 (uncertain) or blank.

    Args:
        columns: Cells by class, ``N`` of each.
        task: Anything but ``"multi-label"`` asks for exactly one 1 a row.
        uncertain: What -1 becomes.
        blank: What a blank cell becomes.
        where: The file, for messages.

    Returns:
        ``float32`` of shape ``(N, C)``: 1, 0, or NaN where unknown.

    Raises:
        ValueError: If ``uncertain`` is ``"per-label"`` and no column is one of `PER_LABEL`. For any other cell, or a
            row that is not one-hot where the task asks for it; the message names the file, the column and the row (1
            is the first row under the header).
    """
    if uncertain == "per-label" and not PER_LABEL.keys() & columns.keys():
        raise ValueError(
            f"{argument('uncertain', 'per-label')} is for columns named {', '.join(PER_LABEL)}, but {where} is read "
            f"with {list(columns)}: choose ignore, zeros or ones"
        )
    values = {"ignore": np.nan, "zeros": 0.0, "ones": 1.0}
    parsed = []
    for name, cells in columns.items():
        unsure = PER_LABEL.get(name, np.nan) if uncertain == "per-label" else values[uncertain]
        parsed.append(_parse_cells(cells, {1.0: 1.0, 0.0: 0.0, -1.0: unsure}, values[blank], name, where))
    labels = np.stack(parsed, 1)
    if task != "multi-label":
        one_hot = np.isfinite(labels).all(1) & (labels.sum(1) == 1)
        if not one_hot.all():
            row = int(np.argmin(one_hot))
            raise ValueError(
                f"{where}: row {row + 1}: a {task} task needs exactly one 1 among the columns "
                f"{list(columns)} and 0 in the others, got {labels[row].tolist()}. "
                f"Pass {argument('task', 'multi-label')} if several may hold."
            )
    return labels


def _parse_cells(
    cells: Sequence[str], known: Mapping[float, float], blank: float, name: str, where: str
) -> NDArray[np.float32]:
    """Reads one column; the few different cells of a column are read once each."""
    values: dict[str, float] = {}
    for cell in dict.fromkeys(cells):
        try:
            values[cell] = blank if is_blank(cell) else known[float(cell)]
        except (ValueError, KeyError):
            raise ValueError(
                f"{where}: column {name!r}, row {cells.index(cell) + 1}: a label must be 1, 0, -1 (uncertain) or "
                f"blank, got {cell!r}" + remedy(". Columns of names are read with {label_column}")
            ) from None
    return np.fromiter(map(values.__getitem__, cells), np.float32, len(cells))


def labels_from_column(
    cells: Sequence[str],
    *,
    separator: str | None,
    task: Task | None,
    classes: Sequence[str] | None,
    blank: Blank,
    negative_label: str | None,
    where: str,
) -> tuple[Task, tuple[str, ...], NDArray[np.float32]]:
    """Reads one column that holds the names of classes.

    Args:
        cells: ``N`` cells: one name each, or several joined by ``separator``.
        separator: Joins names, or ``None`` if a cell is always one name.
        task: ``None`` takes ``"multi-label"`` if the separator occurs or ``negative_label`` is set, else
            ``"multi-class"``.
        classes: Names in the order of the labels; ``None`` takes all that occur, sorted (as numbers if all
            are).
        blank: For a multi-label task, what a blank cell becomes in every class.
        negative_label: Name that stands for none of the classes ("No Finding"), multi-label only.
        where: The file and the column, for messages.

    Returns:
        The task, the classes, and ``float32`` labels of shape ``(N, C)``.

    Raises:
        ValueError: For a name that is none of ``classes``, a blank cell in a single-label task, too few
            classes, or arguments that contradict each other.
    """
    if task is None:
        joined = separator is not None and any(separator in cell for cell in cells)
        task = "multi-label" if joined or negative_label is not None else "multi-class"
    if task != "multi-label" and negative_label is not None:
        raise ValueError(
            f"{argument('negative_label')} is for multi-label tasks, got {negative_label!r} with task {task!r}: leave "
            f"it out, or pass {argument('task', 'multi-label')}"
        )
    names_of = {cell: _names(cell, separator if task == "multi-label" else None) for cell in dict.fromkeys(cells)}
    if task != "multi-label" and [] in names_of.values():
        row = next(row for row, cell in enumerate(cells, 1) if not names_of[cell])
        raise ValueError(
            f"{where}: row {row} is blank, but a {task} task needs a class in every row: fill it, remove the row, or "
            f"pass {argument('task', 'multi-label')}"
        )
    classes = _classes(names_of.values(), task, classes, negative_label, where)
    index = {name: i for i, name in enumerate(classes)}
    different = np.zeros((len(names_of), len(classes)), dtype=np.float32)
    for place, (cell, names) in enumerate(names_of.items()):
        if not names:
            different[place] = np.nan if blank == "ignore" else 0.0
        for name in names:
            if name == negative_label and len(names) == 1:
                continue
            if name not in index:
                row = cells.index(cell) + 1
                raise ValueError(
                    f"{where}: row {row}: {name!r} is none of the classes {list(classes)}: add it "
                    f"({argument('classes')}), or name it as what stands for none of them "
                    f"({argument('negative_label')})"
                )
            different[place, index[name]] = 1.0
    place_of = {cell: place for place, cell in enumerate(names_of)}
    return task, classes, different[[place_of[cell] for cell in cells]]


def _names(cell: str, separator: str | None) -> list[str]:
    if is_blank(cell):
        return []
    parts = [cell] if separator is None else cell.split(separator)
    return [part.strip() for part in parts if part.strip()]


def _classes(
    rows: Iterable[list[str]], task: Task, classes: Sequence[str] | None, negative_label: str | None, where: str
) -> tuple[str, ...]:
    """Takes the classes that the caller names, or those that occur, and refuses what the task cannot have."""
    if classes is None:
        occurring = {name for names in rows for name in names} - {negative_label}
        numeric = all(name.lstrip("-").isdecimal() for name in occurring)
        if task == "ordinal-regression" and not numeric:
            raise ValueError(
                f"{where}: classes must be given, lowest first ({argument('classes')}), as they are no numbers: "
                f"{sorted(occurring)}"
            )
        classes = sorted(occurring, key=(lambda name: (int(name), name)) if numeric else None)
    classes = tuple(classes)
    if len(set(classes)) < len(classes) or negative_label in classes:
        raise ValueError(
            f"classes must differ from each other and from the negative label, got {list(classes)} and "
            f"{negative_label!r} ({argument('classes')}, {argument('negative_label')})"
        )
    fewest = 1 if task == "multi-label" else 2
    if len(classes) < fewest or (task == "binary-class" and len(classes) != 2):
        expected = "exactly 2" if task == "binary-class" else f"at least {fewest}"
        raise ValueError(
            f"{where}: a {task} task needs {expected} classes, got {list(classes)}: name another column "
            f"({argument('label_column')}), the classes ({argument('classes')}) or the task ({argument('task')})"
        )
    return classes
