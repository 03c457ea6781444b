"""Rows of a csv as studies: images, texts, modalities, groups and splits, whatever the labels are."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from recipes.data.arguments import argument, remedy
from recipes.data.image_files import ImageFiles, OnBadImage, check_files_exist, file_reader, problems, some_of
from recipes.data.images.read import image_problem
from recipes.data.images.volumes import is_volume_path, volume_problem
from recipes.data.splits import draw_splits
from recipes.data.studies import SPLITS
from recipes.data.tables.columns import filled, modality_name, split_names
from recipes.data.tables.labels import is_blank


class Layout(NamedTuple):
    """Where a table's images are and what its columns are called; ``None`` for a column that is not read.

    Attributes:
        csv: The table.
        image_column: Paths of the images.
        text_column: Reports, notes or captions.
        modality_column: Kinds of the images.
        split_column: Train, val and test; without it a split is drawn.
        group_column: Patients, or whatever must not cross splits.
        image_root: Folder of the images; ``None`` is the table's.
        on_bad_image: What to do about files that cannot be read.
        force_dicom: Whether DICOM files without preamble and file meta group are read.
        seed: Of the drawn split.
        fractions: Of the drawn split.
        attribute_columns: What else is kept of each row, under the column's name.
        blank_images: Whether a row with a text may have no image.
    """

    csv: Path
    image_column: str
    text_column: str | None = None
    modality_column: str | None = None
    split_column: str | None = None
    group_column: str | None = None
    image_root: str | Path | None = None
    on_bad_image: OnBadImage = "error"
    force_dicom: bool = False
    seed: int = 0
    fractions: tuple[float, float, float] = (0.7, 0.1, 0.2)
    attribute_columns: tuple[str, ...] = ()
    blank_images: bool = False

    def columns(self) -> list[str]:
        """Names the columns to read."""
        optional = (self.text_column, self.modality_column, self.split_column, self.group_column)
        named = (column for column in optional if column is not None)
        return list(dict.fromkeys([self.image_column, *named, *self.attribute_columns]))

    def arguments(self) -> dict[str, str]:
        """Returns the argument that names each column."""
        named = {
            self.image_column: "image_column",
            self.text_column: "text_column",
            self.modality_column: "modality_column",
            self.split_column: "split_column",
            self.group_column: "group_column",
            **dict.fromkeys(self.attribute_columns, "attribute_columns"),
        }
        return {column: name for column, name in named.items() if column is not None}

    def root(self) -> Path:
        """Returns the folder that relative paths start from."""
        return self.csv.parent if self.image_root is None else Path(self.image_root)

    def stem(self) -> str:
        """Returns the csv's name without its endings."""
        return self.csv.name.removesuffix(".gz").removesuffix(".csv")


def read_rows(layout: Layout, table: Mapping[str, Sequence[str]]) -> tuple[ImageFiles, list[str] | None]:
    """Reads every column but the labels.

    Args:
        layout: Which column is what.
        table: The cells by column.

    Returns:
        The studies of all rows, with labels of shape ``(N, 0)``, and the split of each, ``None`` if there is no
        column of it.

    Raises:
        ValueError: For a blank image or group, or a split of another name; the message names file and row.
    """
    where = str(layout.csv)
    blanks = [""] * len(table[layout.image_column])
    texts = blanks if layout.text_column is None else table[layout.text_column]
    ids = _image_cells(layout, table[layout.image_column], texts)
    root = str(layout.root())
    paths = tuple(os.path.normpath(os.path.join(root, path)) if path else "" for path in ids)
    ids = tuple(path or f"row {row}" for row, path in enumerate(ids, 1))
    row_splits = (
        None if layout.split_column is None else split_names(table[layout.split_column], layout.split_column, where)
    )
    groups = ids if layout.group_column is None else filled(table[layout.group_column], layout.group_column, where)
    modalities = blanks if layout.modality_column is None else table[layout.modality_column]
    studies = ImageFiles(
        ids=ids,
        paths=paths,
        details=((),) * len(ids),
        labels=np.zeros((len(ids), 0), np.float32),
        groups=groups,
        texts=tuple(None if is_blank(text) else text.strip() for text in texts),
        modalities=tuple(modality_name(modality) for modality in modalities),
        read=file_reader(layout.force_dicom),
        attributes={name: table[name] for name in layout.attribute_columns},
    )
    return studies, row_splits


def _image_cells(layout: Layout, cells: Sequence[str], texts: Sequence[str]) -> tuple[str, ...]:
    """Returns the paths of the images, blank only where a row may do without one and has a text."""
    if not layout.blank_images:
        return filled(cells, layout.image_column, str(layout.csv))
    paths = tuple("" if is_blank(cell) else cell.strip() for cell in cells)
    neither = [row for row, path in enumerate(paths, 1) if not path and is_blank(texts[row - 1])]
    if neither:
        without = "" if layout.text_column is not None else remedy("; no column of texts was named ({text_column})")
        raise ValueError(
            f"{layout.csv}: column {layout.image_column!r}, row {neither[0]} is blank, and the row has no text either, "
            f"expected an image or a text in every row{without}"
        )
    return paths


def divide(
    layout: Layout, studies: ImageFiles, row_splits: Sequence[str] | None
) -> tuple[dict[str, ImageFiles], list[str]]:
    """Leaves bad images out where the layout says so, and cuts the rest into train, val and test.

    Args:
        layout: What to do about bad images, and how to draw a split.
        studies: All of them.
        row_splits: The split of each, or ``None`` to draw one by group.

    Returns:
        The three splits by name, none of them empty, and notes on what was done.

    Raises:
        ValueError: If images are missing, or a split is empty.
    """
    bad = bad_images(studies, layout)
    kept = [row for row in range(len(studies)) if row not in bad]
    notes = []
    if bad:
        listed = some_of(studies.ids, list(bad))
        notes.append(f"skipped {len(bad)} of {len(studies)} images that cannot be read: {listed}")
    studies = studies.take(kept)
    if row_splits is not None:
        splits = [row_splits[row] for row in kept]
    elif kept:
        splits = draw_splits(studies.groups, fractions=layout.fractions, seed=layout.seed)
        notes.append(f"splits drawn by group with seed {layout.seed} and fractions {layout.fractions}")
    else:
        splits = []
    lacking = int((~studies.has_image).sum())
    if lacking:
        notes.append(f"{lacking} of {len(studies)} studies have a text and no image")
    if layout.group_column is None:
        notes.append("no group column: every image is its own group, so a patient may lie in two splits")
    return _parts(studies, splits, str(layout.csv), bad), notes


def bad_images(studies: ImageFiles, layout: Layout) -> dict[int, str]:
    """Finds the images that cannot be read: what is wrong, by row.

    Raises:
        ValueError: If they are not to be skipped and a file is missing or empty.
    """
    if layout.on_bad_image == "skip":
        return problems(len(studies), lambda row: _problem(studies.paths[row], layout.force_dicom))
    check_images_exist(studies, layout, otherwise=remedy("leave such rows out ({on_bad_image=skip})"))
    return {}


def _problem(path: str, force_dicom: bool) -> str | None:
    """Says what is wrong with an image; nothing is with one that a study does not have."""
    problem_of = volume_problem if path and is_volume_path(path) else image_problem
    return problem_of(path, force_dicom=force_dicom) if path else None


def check_images_exist(studies: ImageFiles, layout: Layout, *, otherwise: str) -> None:
    """Refuses images whose files are missing or empty.

    Args:
        studies: All of them.
        layout: Where they were looked for.
        otherwise: What to do if the folder is right.

    Raises:
        ValueError: Naming up to five of them.
    """
    check_files_exist(
        studies.paths,
        studies.ids,
        str(layout.csv),
        place=f", looked for in {str(layout.root())!r}",
        how=f"Set {argument('image_root')} to the folder at which the paths begin, or {otherwise}.",
    )


def _parts(studies: ImageFiles, splits: Sequence[str], where: str, bad: dict[int, str]) -> dict[str, ImageFiles]:
    """Cuts the studies into train, val and test, none of them empty."""
    rows = {split: [row for row, value in enumerate(splits) if value == split] for split in SPLITS}
    empty = [split for split in SPLITS if not rows[split]]
    if empty:
        counts = ", ".join(f"{split} {len(rows[split])}" for split in SPLITS)
        skipped = f" after {len(bad)} unreadable images were skipped ({next(iter(bad.values()))})" if bad else ""
        raise ValueError(
            f"{where}: every split needs a study, but {' and '.join(empty)} has none: {counts}{skipped}"
            + remedy(". {split_column=None} draws splits by group")
        )
    return {split: studies.take(rows[split]) for split in SPLITS}
