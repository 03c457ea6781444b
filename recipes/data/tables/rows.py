"""Rows of a csv as studies: images, texts, modalities, groups and splits, whatever the labels are."""

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from recipes.data.images.read import image_problem, read_image
from recipes.data.splits import draw_splits
from recipes.data.studies import SPLITS, Study
from recipes.data.tables.columns import filled, modality_name, split_names
from recipes.data.tables.labels import is_blank

OnBadImage = Literal["error", "skip"]


class Layout(NamedTuple):
    """Where the images and the columns that every manifest has are, as the readers' arguments say."""

    csv: Path
    image_column: str
    text_column: str | None
    modality_column: str | None
    split_column: str | None
    group_column: str | None
    image_root: str | Path | None
    on_bad_image: OnBadImage
    seed: int
    fractions: tuple[float, float, float]

    def columns(self) -> list[str]:
        """Names the columns to read."""
        optional = (self.text_column, self.modality_column, self.split_column, self.group_column)
        return [self.image_column, *(column for column in optional if column is not None)]

    def root(self) -> Path:
        """The folder that relative paths start from."""
        return self.csv.parent if self.image_root is None else Path(self.image_root)

    def stem(self) -> str:
        """The csv's name without its endings."""
        return self.csv.name.removesuffix(".gz").removesuffix(".csv")


@dataclass(frozen=True, eq=False)
class ManifestSplit:
    """One split of a csv; images are read when a study is asked for.

    Attributes:
        ids: The image column, as written.
        paths: Where the images lie.
        labels: ``float32`` of shape ``(N, C)``, NaN where unknown.
        groups: Group of each study.
        texts: Text of each study, ``None`` where there is none.
        modalities: Modality of each study, ``None`` where it is not known.
    """

    ids: tuple[str, ...]
    paths: tuple[str, ...]
    labels: NDArray[np.float32]
    groups: tuple[str, ...]
    texts: tuple[str | None, ...]
    modalities: tuple[str | None, ...]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Study:
        """Reads one study.

        Raises:
            ValueError: If the image cannot be read; the message names it.
        """
        return Study(
            id=self.ids[index],
            group=self.groups[index],
            image=read_image(self.paths[index]),
            text=self.texts[index],
            labels=self.labels[index].copy(),
            modality=self.modalities[index],
        )

    def take(self, rows: Sequence[int]) -> "ManifestSplit":
        """Returns the studies of some rows, in their order."""
        return ManifestSplit(
            ids=tuple(self.ids[row] for row in rows),
            paths=tuple(self.paths[row] for row in rows),
            labels=self.labels[list(rows)],
            groups=tuple(self.groups[row] for row in rows),
            texts=tuple(self.texts[row] for row in rows),
            modalities=tuple(self.modalities[row] for row in rows),
        )


def read_rows(layout: Layout, table: Mapping[str, Sequence[str]]) -> tuple[ManifestSplit, list[str] | None]:
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
    ids = filled(table[layout.image_column], layout.image_column, where)
    paths = tuple(os.path.normpath(layout.root() / path) for path in ids)
    given = None if layout.split_column is None else split_names(table[layout.split_column], layout.split_column, where)
    groups = ids if layout.group_column is None else filled(table[layout.group_column], layout.group_column, where)
    blanks = [""] * len(ids)
    texts = blanks if layout.text_column is None else table[layout.text_column]
    modalities = blanks if layout.modality_column is None else table[layout.modality_column]
    studies = ManifestSplit(
        ids=ids,
        paths=paths,
        labels=np.zeros((len(ids), 0), np.float32),
        groups=groups,
        texts=tuple(None if is_blank(text) else text.strip() for text in texts),
        modalities=tuple(modality_name(modality) for modality in modalities),
    )
    return studies, given


def divide(
    layout: Layout, studies: ManifestSplit, given: Sequence[str] | None
) -> tuple[dict[str, ManifestSplit], list[str]]:
    """Leaves bad images out where that is wanted, and cuts the rest into train, val and test.

    Args:
        layout: What to do about bad images, and how to draw a split.
        studies: All of them.
        given: The split of each, or ``None`` to draw one by group.

    Returns:
        The three splits by name, none of them empty, and notes on what was done.

    Raises:
        ValueError: If images are missing, or a split is empty.
    """
    skip = layout.on_bad_image == "skip"
    bad = _bad_images(studies, str(layout.csv), layout.root(), skip=skip)
    kept = [row for row in range(len(studies)) if row not in bad]
    notes = []
    if bad:
        listed = some_ids(studies, list(bad))
        notes.append(f"skipped {len(bad)} of {len(studies)} images that cannot be read: {listed}")
    studies = studies.take(kept)
    if given is not None:
        splits = [given[row] for row in kept]
    elif kept:
        splits = draw_splits(studies.groups, fractions=layout.fractions, seed=layout.seed)
        notes.append(f"splits drawn by group with seed {layout.seed} and fractions {layout.fractions}")
    else:
        splits = []
    if layout.group_column is None:
        notes.append("no group column: every image is its own group, so a patient may lie in two splits")
    return _parts(studies, splits, str(layout.csv), bad), notes


def some_ids(studies: ManifestSplit, rows: Sequence[int]) -> str:
    """Lists up to five of the rows' images."""
    shown = ", ".join(studies.ids[row] for row in rows[:5])
    return shown if len(rows) <= 5 else f"{shown}, ..."


def _bad_images(studies: ManifestSplit, where: str, root: Path, *, skip: bool) -> dict[int, str]:
    """Finds the images that cannot be read: what is wrong, by row.

    Raises:
        ValueError: If not ``skip`` and a file is missing or empty.
    """
    with ThreadPoolExecutor() as pool:
        problems = list(pool.map(image_problem if skip else _absence, studies.paths))
    bad = {row: problem for row, problem in enumerate(problems) if problem is not None}
    if bad and not skip:
        raise ValueError(
            f"{where}: {len(bad)} of {len(studies)} images are missing or empty, looked for in "
            f"{str(root)!r}: {some_ids(studies, list(bad))}. "
            "Set image_root, or pass on_bad_image='skip' to leave them out."
        )
    return bad


def _absence(path: str) -> str | None:
    try:
        return None if os.stat(path).st_size else "empty"
    # ValueError: a name no file can have, such as one with a NUL byte.
    except (OSError, ValueError):
        return "missing"


def _parts(studies: ManifestSplit, splits: Sequence[str], where: str, bad: dict[int, str]) -> dict[str, ManifestSplit]:
    """Cuts the studies into train, val and test, none of them empty."""
    rows = {split: [row for row, value in enumerate(splits) if value == split] for split in SPLITS}
    empty = [split for split in SPLITS if not rows[split]]
    if empty:
        counts = ", ".join(f"{split} {len(rows[split])}" for split in SPLITS)
        skipped = f" after {len(bad)} unreadable images were skipped ({next(iter(bad.values()))})" if bad else ""
        raise ValueError(f"{where}: every split needs a study, but {' and '.join(empty)} has none: {counts}{skipped}")
    return {split: studies.take(rows[split]) for split in SPLITS}
