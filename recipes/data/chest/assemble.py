"""From what the tables of a set say to a source: views, images that exist, splits."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import compress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from recipes.data.arguments import argument
from recipes.data.chest.files import existing_paths
from recipes.data.chest.options import ChestOptions
from recipes.data.chest.views import rows_of_views
from recipes.data.image_files import ImageFiles, OnBadImage, check_files_exist, file_reader, problems, some_of
from recipes.data.images.read import image_problem
from recipes.data.splits import draw_splits, draw_validation
from recipes.data.studies import SPLITS, StudySource, check_groups_apart
from recipes.data.tables.labels import check_choice


@dataclass(frozen=True, eq=False)
class ChestRows:
    """What the tables of a set say of ``N`` images.

    Attributes:
        name: Of the set.
        where: The table, for messages.
        root: Folder of the set.
        classes: Names of the ``C`` findings.
        ids: Unique names of the images.
        paths: Their files.
        labels: ``float32`` of shape ``(N, C)``, NaN where unknown.
        groups: Patients.
        views: Views as the set writes them; empty where it does not.
        splits: Official splits, ``None`` where there are none. Without any ``"val"``, one is drawn from ``"train"``.
        texts: Reports, ``None`` for images without.
        attributes: What else is known of each image, such as sex and age; views need no place here.
        notes: What a reader of a report should know.
        class_sets: As in `StudySource`.
    """

    name: str
    where: str
    root: Path
    classes: tuple[str, ...]
    ids: Sequence[str]
    paths: Sequence[str]
    labels: NDArray[np.float32]
    groups: Sequence[str]
    views: Sequence[str] = ()
    splits: Sequence[str] | None = None
    texts: Sequence[str | None] | None = None
    attributes: Mapping[str, Sequence[str]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    class_sets: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def chest_source(rows: ChestRows, options: ChestOptions) -> StudySource:
    """Keeps the views asked for, checks the images and cuts them into train, val and test.

    Args:
        rows: What the tables say.
        options: Choices of the user.

    Raises:
        ValueError: If no image has a view that is asked for, an id occurs twice, images are missing, a split is empty
            or a patient lies in two.
    """
    check_choice("on_bad_image", options.on_bad_image, OnBadImage)
    _check_ids_differ(rows)
    notes = list(rows.notes)
    if options.views and not rows.views:
        raise ValueError(f"{argument('views')}: {rows.name} names no views, so leave it out")
    kept = rows_of_views(rows.views, options.views, rows.where) if rows.views else list(range(len(rows.ids)))
    if len(kept) < len(rows.ids):
        notes.append(f"views {', '.join(options.views)}: {len(kept)} of {len(rows.ids)} images")
    studies = _studies(rows, options).take(kept)
    studies = replace(studies, paths=tuple(existing_paths(studies.paths)))
    bad = _bad_images(studies, rows, options)
    if bad:
        listed = some_of(studies.ids, list(bad))
        notes.append(f"skipped {len(bad)} of {len(studies)} images that cannot be read: {listed}")
        sound = [place for place in range(len(kept)) if place not in bad]
        kept, studies = [kept[place] for place in sound], studies.take(sound)
    splits, drawn = _splits(rows, studies, kept, options)
    source = StudySource(
        rows.name,
        "multi-label",
        rows.classes,
        **_parts(studies, splits, rows.where, len(bad)),
        notes=(*notes, *drawn),
        class_sets=rows.class_sets,
    )
    if not options.allow_crossing:
        check_groups_apart(source)
    return source


def _studies(rows: ChestRows, options: ChestOptions) -> ImageFiles:
    count = len(rows.ids)
    return ImageFiles(
        ids=tuple(rows.ids),
        paths=tuple(rows.paths),
        details=((),) * count,
        labels=rows.labels,
        groups=tuple(rows.groups),
        texts=(None,) * count if rows.texts is None else tuple(rows.texts),
        modalities=("xray",) * count,
        read=file_reader(options.force_dicom),
        attributes=dict(rows.attributes) | ({"view": rows.views} if rows.views else {}),
    )


def _check_ids_differ(rows: ChestRows) -> None:
    if len(set(rows.ids)) == len(rows.ids):
        return
    first: dict[str, int] = {}
    for row, name in enumerate(rows.ids):
        if first.setdefault(name, row) != row:
            raise ValueError(
                f"{rows.where}: rows {first[name] + 1} and {row + 1} both list the image {name!r}: remove one"
            )


def _bad_images(studies: ImageFiles, rows: ChestRows, options: ChestOptions) -> dict[int, str]:
    """Finds the images that cannot be read, where they are to be skipped; refuses missing ones where not."""
    if options.on_bad_image == "skip":
        return problems(len(studies), lambda row: image_problem(studies.paths[row], force_dicom=options.force_dicom))
    check_files_exist(
        studies.paths,
        studies.paths,
        rows.where,
        place=f", looked for in {str(rows.root)!r}",
        how=f"Complete them, or leave such rows out ({argument('on_bad_image', 'skip')}).",
    )
    return {}


def _splits(
    rows: ChestRows, studies: ImageFiles, kept: Sequence[int], options: ChestOptions
) -> tuple[list[str], list[str]]:
    """Returns the split of each study, and notes on what was drawn."""
    if rows.splits is None or not options.official_splits:
        if len(studies) == 0:
            return [], []
        note = f"splits drawn by patient with seed {options.seed} and fractions {options.fractions}"
        return draw_splits(studies.groups, fractions=options.fractions, seed=options.seed), [note]
    splits = [rows.splits[row] for row in kept]
    if "val" in rows.splits:
        return splits, []
    train = [row for row, split in enumerate(splits) if split == "train"]
    share = options.fractions[1] / (options.fractions[0] + options.fractions[1])
    drawn = draw_validation([studies.groups[row] for row in train], share=share, seed=options.seed)
    for row in compress(train, drawn):
        splits[row] = "val"
    note = (
        f"official test split; {share:.1%} of the training images drawn by patient for validation with seed "
        f"{options.seed}"
    )
    return splits, [note]


def _parts(studies: ImageFiles, splits: Sequence[str], where: str, bad: int) -> dict[str, ImageFiles]:
    """Cuts the studies into train, val and test, none of them empty."""
    rows: dict[str, list[int]] = {split: [] for split in SPLITS}
    for row, split in enumerate(splits):
        rows[split].append(row)
    empty = [split for split in SPLITS if not rows[split]]
    if empty:
        counts = ", ".join(f"{split} {len(rows[split])}" for split in SPLITS)
        skipped = f" after {bad} unreadable images were skipped" if bad else ""
        raise ValueError(f"{where}: every split needs an image, but {' and '.join(empty)} has none: {counts}{skipped}")
    return {split: studies.take(rows[split]) for split in SPLITS}
