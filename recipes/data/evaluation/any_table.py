"""Any csv of paths and labels."""

from collections.abc import Sequence
from pathlib import Path

from recipes.data.arguments import argument
from recipes.data.evaluation.assemble import FRACTIONS, Splits, assemble, unofficial
from recipes.data.evaluation.columns import refuse_options
from recipes.data.evaluation.types import EvaluationSet
from recipes.data.image_files import ImageFiles, OnBadImage, file_reader
from recipes.data.studies import Task
from recipes.data.tables.columns import filled, split_names
from recipes.data.tables.csv_file import read_table
from recipes.data.tables.labels import is_blank, labels_from_column

_NO_GROUPS = "no group column: every image is its own group, so a patient may lie in two splits"


def csv_set(
    csv: str | Path,
    *,
    image_column: str = "image",
    label_column: str = "label",
    label_separator: str | None = None,
    split_column: str | None = None,
    group_column: str | None = None,
    text_column: str | None = None,
    modality: str | None = None,
    modality_column: str | None = None,
    only: Sequence[str] = (),
    classes: Sequence[str] | None = None,
    negative_label: str | None = None,
    task: Task | None = None,
    image_root: str | Path | None = None,
    prompts: str | None = None,
    splits: Splits = "test",
    seed: int = 0,
    fractions: tuple[float, float, float] = FRACTIONS,
    on_bad_image: OnBadImage = "error",
    force_dicom: bool = False,
    name: str | None = None,
) -> EvaluationSet:
    """Reads a csv of one image per row with its label, for zero-shot classification all of it.

    Args:
        csv: The table: comma-separated, UTF-8, a header row.
        image_column: Paths of the images, absolute or below ``image_root``.
        label_column: Name of the class, or several joined by ``label_separator``.
        label_separator: Joins names; ``None`` if a cell is one name.
        split_column: Column of train, val and test; a test row is needed, the others are not.
        group_column: The patient; ``None``: every image is its own.
        text_column: Report or note.
        modality: Kind of all images.
        modality_column: Or the column that names it.
        only: Conditions such as ``"modality=ct"``: rows are kept whose cell in that column is that text. All
            conditions must hold.
        classes: Names in order, by default all that occur in the rows kept, sorted.
        negative_label: Name that stands for no class at all, for multi-label.
        task: Overrides the task taken from the labels.
        image_root: Folder of the images, by default the csv's.
        prompts: Name of the prompt file.
        splits: Without a split column: everything for test, or drawn by group.
        seed: Of drawn splits.
        fractions: Of drawn splits.
        on_bad_image: What to do about files that cannot be read.
        force_dicom: Whether DICOM files without preamble and file meta group are read.
        name: Of the set, by default the csv's name without its ending.

    Raises:
        ValueError: If the file, a column or an image is missing, no row is kept, a label is none of the classes, a
            group lies in two splits, or arguments contradict each other.
    """
    csv, where = Path(csv), str(csv)
    if modality is not None and modality_column is not None:
        raise ValueError(
            f"give {argument('modality')} or {argument('modality_column')}, got {modality!r} and {modality_column!r}"
        )
    if split_column is not None:
        drawn = {"splits": (splits, "test"), "seed": (seed, 0), "fractions": (tuple(fractions), FRACTIONS)}
        refuse_options(f"{where} names the split of each row", **drawn)
    conditions = [_condition(str(text)) for text in only]
    named = {
        image_column: "image_column",
        label_column: "label_column",
        split_column: "split_column",
        group_column: "group_column",
        text_column: "text_column",
        modality_column: "modality_column",
    }
    named = dict.fromkeys((column for column, _ in conditions), "only") | {
        column: name for column, name in named.items() if column is not None
    }
    table = read_table(csv, list(named), arguments=named)
    table = _keep(table, conditions, where)
    ids = filled(table[image_column], image_column, where)
    task, classes, labels = labels_from_column(
        table[label_column],
        separator=label_separator,
        task=task,
        classes=None if classes is None else [str(name) for name in classes],
        blank="ignore",
        negative_label=negative_label,
        where=f"{where}: column {label_column!r}",
    )
    base = csv.parent if image_root is None else Path(image_root)
    images = ImageFiles(
        ids=ids,
        paths=tuple(str(base / path) for path in ids),
        details=((),) * len(ids),
        labels=labels,
        groups=ids if group_column is None else filled(table[group_column], group_column, where),
        texts=_cells_or_none(table, text_column, len(ids)),
        modalities=_cells_or_none(table, modality_column, len(ids)) if modality is None else (modality,) * len(ids),
        read=file_reader(force_dicom),
    )
    row_splits = (
        unofficial(splits, len(ids), seed, fractions)
        if split_column is None
        else split_names(table[split_column], split_column, where)
    )
    return assemble(
        name or csv.name.removesuffix(".gz").removesuffix(".csv"),
        images,
        row_splits,
        task=task,
        classes=classes,
        where=where,
        prompts=prompts,
        on_bad_image=on_bad_image,
        notes=[*(f"only rows with {text}" for text in only), *([_NO_GROUPS] if group_column is None else [])],
    )


def _condition(text: str) -> tuple[str, str]:
    column, equals, value = text.partition("=")
    if not equals or not column.strip():
        raise ValueError(f"{argument('only')}: a condition must be column=value, got {text!r}")
    return column.strip(), value.strip()


def _keep(table: dict[str, list[str]], conditions: list[tuple[str, str]], where: str) -> dict[str, list[str]]:
    """Keeps the rows that meet all conditions."""
    rows = range(len(next(iter(table.values()))))
    kept = [row for row in rows if all(table[column][row].strip() == value for column, value in conditions)]
    if not kept:
        column = conditions[0][0]
        present = sorted({cell.strip() for cell in table[column]})[:10]
        raise ValueError(
            f"{where}: {argument('only')}: no row has {' and '.join(f'{c}={v}' for c, v in conditions)}; {column!r} "
            f"holds {present}"
        )
    return {column: [cells[row] for row in kept] for column, cells in table.items()}


def _cells_or_none(table: dict[str, list[str]], column: str | None, count: int) -> tuple[str | None, ...]:
    """Returns the cells of a column that may be missing, ``None`` for blank ones."""
    if column is None:
        return (None,) * count
    return tuple(None if is_blank(cell) else cell.strip() for cell in table[column])
