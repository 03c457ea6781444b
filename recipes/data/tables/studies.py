"""Reads a data set from a csv: one row per image, with its text, labels, split and group."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from recipes.data.arguments import argument
from recipes.data.image_files import OnBadImage
from recipes.data.studies import StudySource, Task, check_groups_apart
from recipes.data.tables.csv_file import read_table
from recipes.data.tables.labels import Blank, Uncertain, check_choice, labels_from_column, labels_from_columns
from recipes.data.tables.rows import Layout, divide, read_rows


class _LabelPlan(NamedTuple):
    """Where the labels stand and how to read them: the label arguments of `manifest_source`."""

    label_columns: Sequence[str] | None
    label_column: str | None
    separator: str | None
    task: Task | None
    classes: Sequence[str] | None
    uncertain: Uncertain
    blank: Blank
    negative_label: str | None

    def columns(self) -> list[str]:
        """Names the columns to read."""
        return [self.label_column] if self.label_columns is None else list(self.label_columns)

    def arguments(self) -> dict[str, str]:
        """Returns the argument that names each column."""
        return dict.fromkeys(self.columns(), "label_column" if self.label_columns is None else "label_columns")


def manifest_source(
    csv: str | Path,
    *,
    image_column: str = "image",
    text_column: str | None = "text",
    modality_column: str | None = None,
    label_columns: Sequence[str] | None = None,
    label_column: str | None = None,
    label_separator: str | None = "|",
    split_column: str | None = "split",
    group_column: str | None = None,
    attribute_columns: Sequence[str] = (),
    image_root: str | Path | None = None,
    task: Task | None = None,
    classes: Sequence[str] | None = None,
    on_bad_image: OnBadImage = "error",
    force_dicom: bool = False,
    uncertain: Uncertain = "ignore",
    blank: Blank = "ignore",
    negative_label: str | None = None,
    seed: int = 0,
    fractions: tuple[float, float, float] = (0.7, 0.1, 0.2),
    name: str | None = None,
    allow_crossing: bool = False,
    blank_images: bool = False,
) -> StudySource:
    """Reads a csv of images into train, val and test.

    The labels are either columns of 1, 0, -1 and blank, one per class (``label_columns``), or one column of
    names (``label_column``). Single-label tasks become one-hot rows. Rows are counted from 1, the first under
    the header.

    Args:
        csv: The table: comma-separated, UTF-8, a header row; ``.csv.gz`` works too.
        image_column: Path of the image, absolute or below ``image_root``. One row per image.
        text_column: Report or note; a blank cell means none. ``None``: no study has a text.
        modality_column: Kind of the image (``xray``, ``ct``, ...), kept in lower case; a blank cell means that it
            is not known. ``None``: it is known of no study.
        label_columns: Columns of the classes; the task is multi-label unless ``task`` says otherwise.
        label_column: Column of class names; the task is multi-label if ``label_separator`` occurs in it or
            ``negative_label`` is set, else multi-class.
        label_separator: Joins the names in ``label_column``; ``None`` if a cell is one name.
        split_column: Column of train, val (valid, validation) and test, in any case. ``None`` draws a split
            by group (`recipes.data.splits.draw_splits`).
        group_column: The patient, or whatever must not cross splits. ``None``: every image is its own.
        attribute_columns: What else is kept of each image, such as sex and age, for scores of subgroups.
        image_root: Folder of the images, by default the csv's.
        task: Overrides the task taken from the labels.
        classes: For ``label_column``, the names in order (default: all that occur, sorted); for
            ``label_columns``, names to show instead of the columns'.
        on_bad_image: ``"error"`` refuses missing and empty files at once and damaged ones when they are read.
            ``"skip"`` opens every file now, leaves the bad ones out and counts them in ``notes``.
        force_dicom: Whether DICOM files without preamble and file meta group are read.
        uncertain: What -1 becomes, for ``label_columns``: NaN, 0 or 1.
        blank: What a blank label becomes: ``"ignore"`` NaN, for nothing is known of it, or ``"zeros"`` 0,
            which is what much work on CheXpert takes a finding to be that a report does not mention.
        negative_label: In ``label_column``, the name that stands for no class at all, such as "No Finding".
        seed: Of the drawn split.
        fractions: Shares of train, val and test in the drawn split.
        name: Of the source, by default the csv's name without its ending.
        blank_images: Whether a row with a text may have no image; its id is then ``row N``.
        allow_crossing: Whether a group, or an image that is listed twice, may lie in two splits; only to list them.

    Returns:
        A source whose splits hold at least one study each and share no group.

    Raises:
        ValueError: For a missing or unreadable csv, a column it lacks, a cell that cannot be read, an image
            listed twice, missing images, an empty split, a group in two splits, or arguments that contradict
            each other. The message names the file and the column, row or image.
        ImportError: If Pillow is not installed.
    """
    check_choice("on_bad_image", on_bad_image, OnBadImage)
    plan = _LabelPlan(label_columns, label_column, label_separator, task, classes, uncertain, blank, negative_label)
    _check_plan(plan)
    layout = Layout(
        csv=Path(csv),
        image_column=image_column,
        text_column=text_column,
        modality_column=modality_column,
        split_column=split_column,
        group_column=group_column,
        attribute_columns=tuple(attribute_columns),
        image_root=image_root,
        on_bad_image=on_bad_image,
        force_dicom=force_dicom,
        seed=seed,
        fractions=fractions,
        blank_images=blank_images,
    )
    table = read_table(
        layout.csv, [*layout.columns(), *plan.columns()], arguments=layout.arguments() | plan.arguments()
    )
    studies, row_splits = read_rows(layout, table)
    if not allow_crossing:
        _check_images_differ(studies.paths, row_splits, str(csv))
    task, classes, labels = _read_labels(plan, table, str(csv))
    parts, notes = divide(layout, replace(studies, labels=labels), row_splits)
    notes = (*notes, *_unused_negative_label(plan, table))
    source = StudySource(name or layout.stem(), task, classes, **parts, notes=notes)
    if not allow_crossing:
        check_groups_apart(source)
    return source


def _check_plan(plan: _LabelPlan) -> None:
    """Refuses label arguments that contradict each other."""
    check_choice("uncertain", plan.uncertain, Uncertain)
    check_choice("blank", plan.blank, Blank)
    if plan.task is not None:
        check_choice("task", plan.task, Task)
    if (plan.label_columns is None) == (plan.label_column is None):
        raise ValueError(
            f"give either {argument('label_columns')} (one column per class) or {argument('label_column')} (one column "
            f"of class names), got {list(plan.label_columns or ())} and {plan.label_column!r}"
        )
    if plan.label_columns is None:
        if plan.uncertain != "ignore":
            raise ValueError(
                f"{argument('uncertain')} is for {argument('label_columns')}, got {plan.uncertain!r} with "
                f"{argument('label_column')}: leave it out"
            )
        return
    if isinstance(plan.label_columns, str) or not plan.label_columns:
        raise ValueError(f"{argument('label_columns')} must be a sequence of column names, got {plan.label_columns!r}")
    if len(set(plan.label_columns)) < len(plan.label_columns):
        raise ValueError(f"{argument('label_columns')} must differ from each other, got {list(plan.label_columns)}")
    if plan.negative_label is not None:
        raise ValueError(
            f"{argument('negative_label')} is for {argument('label_column')}, got {plan.negative_label!r} with "
            f"{argument('label_columns')}: leave it out"
        )
    if plan.classes is not None and len(set(plan.classes)) != len(plan.label_columns):
        raise ValueError(
            f"{argument('classes')} must give {len(plan.label_columns)} different names for "
            f"{len(plan.label_columns)} {argument('label_columns')}, got {list(plan.classes)}"
        )


def _read_labels(
    plan: _LabelPlan, table: dict[str, list[str]], where: str
) -> tuple[Task, tuple[str, ...], NDArray[np.float32]]:
    if plan.label_columns is None:
        return labels_from_column(
            table[plan.label_column],
            separator=plan.separator,
            task=plan.task,
            classes=plan.classes,
            blank=plan.blank,
            negative_label=plan.negative_label,
            where=f"{where}: column {plan.label_column!r}",
        )
    task = plan.task or "multi-label"
    cells = {column: table[column] for column in plan.label_columns}
    labels = labels_from_columns(cells, task=task, uncertain=plan.uncertain, blank=plan.blank, where=where)
    return task, tuple(plan.classes or plan.label_columns), labels


def _unused_negative_label(plan: _LabelPlan, table: dict[str, list[str]]) -> list[str]:
    """Says that no row has the label that stands for no class: it may be spelled otherwise, and then counts as one."""
    if plan.negative_label is None or plan.label_column is None:
        return []
    if any(cell.strip() == plan.negative_label for cell in table[plan.label_column]):
        return []
    return [
        f"no cell of column {plan.label_column!r} is {plan.negative_label!r}, which stands for no class "
        f"({argument('negative_label')})"
    ]


def _check_images_differ(paths: Sequence[str], splits: Sequence[str] | None, where: str) -> None:
    """Refuses an image listed twice: its studies could not be told apart, or it leaks into the test split."""
    first: dict[str, int] = {}
    for row, path in enumerate(paths):
        other = first.setdefault(path, row)
        if other == row or not path:
            continue
        rows = f"{where}: rows {other + 1} and {row + 1} both list the image {path!r}"
        if splits is not None and splits[other] != splits[row]:
            raise ValueError(f"{rows}, in different splits ({splits[other]} and {splits[row]})")
        raise ValueError(f"{rows}: expected one row per image, so join their labels and texts")
