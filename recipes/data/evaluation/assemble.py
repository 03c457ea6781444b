"""From labelled images and their splits to an evaluation set: what every reader checks last."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from recipes.data.arguments import argument, remedy
from recipes.data.evaluation.columns import refuse_options
from recipes.data.evaluation.types import EvaluationSet
from recipes.data.image_files import ImageFiles, OnBadImage, check_files_exist, problems
from recipes.data.splits import draw_splits
from recipes.data.studies import SPLITS, Task, check_splits_apart
from recipes.data.tables.labels import check_choice

Splits = Literal["draw", "test"]
"""For a set without official splits: ``"draw"`` train, val and test by group, or take all of it for ``"test"``."""


FRACTIONS = (0.7, 0.1, 0.2)
"""Shares of train, val and test in splits that are drawn, if none are set."""


class Draw(NamedTuple):
    """Asks for splits drawn by group (`recipes.data.splits.draw_splits`).

    Attributes:
        seed: Of the shuffle.
        fractions: Shares of train, val and test.
    """

    seed: int = 0
    fractions: tuple[float, float, float] = FRACTIONS


def one_hot(classes: Sequence[int], count: int) -> NDArray[np.float32]:
    """Spreads class numbers over ``count`` columns: ``float32`` of shape ``(N, count)``."""
    return np.eye(count, dtype=np.float32)[np.asarray(classes, dtype=np.int64)]


def unofficial(splits: Splits, count: int, seed: int, fractions: tuple[float, float, float]) -> Draw | list[str]:
    """Returns what `assemble` needs for a set of ``count`` images that has no official splits.

    Raises:
        ValueError: If ``splits`` is none of the choices, or nothing is drawn by a seed or by fractions that were set.
    """
    check_choice("splits", splits, Splits)
    if splits == "draw":
        return Draw(seed, tuple(fractions))
    refuse_options("splits='test' draws nothing", seed=(seed, 0), fractions=(tuple(fractions), FRACTIONS))
    return ["test"] * count


def assemble(
    name: str,
    images: ImageFiles,
    splits: Sequence[str] | Draw,
    *,
    task: Task,
    classes: Sequence[str],
    where: str,
    prompts: str | None = None,
    on_bad_image: OnBadImage = "error",
    notes: Sequence[str] = (),
) -> EvaluationSet:
    """Checks the images, cuts them into splits and checks that no group crosses.

    Args:
        name: Of the set.
        images: All images.
        splits: Split of each image, or how to draw them.
        task: Kind of target.
        classes: Names in the order of the labels.
        where: File or folder that the images come from, for messages.
        prompts: Name of the prompt file.
        on_bad_image: What to do about files that are missing or cannot be read.
        notes: What a reader of a result should know.

    Returns:
        The set; its modality is that of its images if all have the same.

    Raises:
        ValueError: If an id occurs twice, an image is missing, the test split (or another that ``splits``
            names) has no image left, or a group lies in two splits.
    """
    check_choice("on_bad_image", on_bad_image, OnBadImage)
    _check_ids_differ(images, splits, where)
    bad = _bad_images(images, where, skip=on_bad_image == "skip")
    kept = [row for row in range(len(images)) if row not in bad]
    notes = list(notes)
    if bad:
        reason = next(iter(bad.values()))
        notes.append(f"skipped {len(bad)} of {len(images)} images that cannot be read, such as {reason}")
    required = {"test"} if isinstance(splits, Draw) else {"test", *splits}
    images = images.take(kept)
    if isinstance(splits, Draw) and kept:
        notes.append(f"splits drawn by group with seed {splits.seed} and fractions {splits.fractions}")
        row_splits = draw_splits(images.groups, fractions=splits.fractions, seed=splits.seed)
    else:
        row_splits = [splits[row] for row in kept]
    rows = {split: [row for row, value in enumerate(row_splits) if value == split] for split in SPLITS}
    empty = [split for split in SPLITS if split in required and not rows[split]]
    if empty:
        reason = f" after {len(bad)} unreadable images were skipped" if bad else ""
        raise ValueError(f"{where}: the {' and '.join(empty)} split of {name} holds no image{reason}")
    parts = {split: images.take(rows[split]) for split in SPLITS if rows[split]}
    check_splits_apart(f"{name} ({where})", parts.items())
    modalities = set(images.modalities)
    modality = modalities.pop() if len(modalities) == 1 else None
    return EvaluationSet(name, task, tuple(classes), modality, parts, prompts, tuple(notes))


def _check_ids_differ(images: ImageFiles, splits: Sequence[str] | Draw, where: str) -> None:
    first: dict[str, int] = {}
    for row, name in enumerate(images.ids):
        other = first.setdefault(name, row)
        if other == row:
            continue
        crossing = not isinstance(splits, Draw) and splits[other] != splits[row]
        place = f" ({splits[other]} and {splits[row]})" if crossing else ""
        raise ValueError(f"{where}: {name!r} is listed twice{place}: expected every image once")


def _bad_images(images: ImageFiles, where: str, *, skip: bool) -> dict[int, str]:
    """Finds the images that cannot be read: what is wrong, by row.

    Raises:
        ValueError: If not ``skip`` and a file is missing or empty.
    """
    if skip:
        return problems(len(images), lambda row: _problem(images, row))
    files = list(dict.fromkeys(images.paths))
    how = f"Complete them, or leave them out ({argument('on_bad_image', 'skip')})."
    check_files_exist(files, files, where, how=how + remedy(" {image_root} is the folder at which the paths begin."))
    return {}


def _problem(images: ImageFiles, row: int) -> str | None:
    try:
        images[row]
    except ValueError as error:
        return str(error)
    return None
