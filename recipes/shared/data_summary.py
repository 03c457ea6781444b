"""What a data set holds, in a few lines that are printed before training."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from recipes.data.pairs import PairSource, PairStream
from recipes.data.studies import StudySource

MOST_CLASSES = 40
"""Classes that are listed."""

Row = tuple[str, Sequence[str]]


def study_summary(source: StudySource, texts: Mapping[str, Sequence[str | None]]) -> str:
    """Returns studies, patients, texts and positives of each split, and what was done to get there.

    Args:
        source: The data set.
        texts: The texts that the model reads, by split.

    Returns:
        Lines of text. A class is shown as its positives out of the studies whose label is known.
    """
    splits = dict(source.splits())
    rows = [
        _counts("studies", splits, len),
        _counts("groups (patients)", splits, lambda split: len(set(split.groups))),
        ("texts read", [f"{sum(bool(text and text.strip()) for text in texts[name]):,}" for name in splits]),
    ]
    for c, name in enumerate(source.classes[:MOST_CLASSES]):
        rows.append((f"positive: {name}", [_positives(split.labels[:, c]) for split in splits.values()]))
    more = len(source.classes) - MOST_CLASSES
    lines = [f"data: {source.name}, {source.task}, {sum(map(len, splits.values())):,} studies", *_table(rows)]
    if more > 0:
        lines.append(f"  and {more} more classes")
    return "\n".join([*lines, *_notes([*source.notes, *_unlearnable(source), *_without_texts(source, texts)])])


def pair_summary(source: PairSource) -> str:
    """Returns pairs, patients and kinds of image of each split; patients and texts of a stream are not counted.

    Args:
        source: The pairs.
    """
    splits: dict[str, Any] = dict(source.splits())

    def row(title: str, count: Callable[[Any], int]) -> Row:
        streams = [name for name, split in splits.items() if isinstance(split, PairStream)]
        return title, ["stream" if name in streams else f"{count(split):,}" for name, split in splits.items()]

    rows = [
        _counts("pairs", splits, len),
        row("groups (patients)", lambda split: len(set(split.groups))),
        row("different texts", lambda split: len(set(split.texts))),
    ]
    of_splits = {
        name: Counter(split.modality_of_each() if isinstance(split, PairStream) else split.modalities)
        for name, split in splits.items()
    }
    kinds = set[str | None]().union(*of_splits.values())
    rows += [
        (f"modality: {kind or 'not known'}", [f"{counts[kind]:,}" for counts in of_splits.values()])
        for kind in sorted(kinds, key=lambda kind: (kind is None, kind))
    ]
    return "\n".join([f"data: {source.name}", *_table(rows), *_notes(source.notes)])


def _counts(title: str, splits: Mapping[str, Any], count: Callable[[Any], int]) -> Row:
    return title, [f"{count(split):,}" for split in splits.values()]


def _positives(labels: np.ndarray) -> str:
    return f"{int((labels == 1).sum()):,} of {int((~np.isnan(labels)).sum()):,}"


def _unlearnable(source: StudySource) -> list[str]:
    """Names the classes of which the training split shows one side only."""
    labels = source.train.labels
    lacking = [
        f"{name} ({'positives' if not (labels[:, c] == 1).any() else 'negatives'})"
        for c, name in enumerate(source.classes)
        if not (labels[:, c] == 1).any() or not (labels[:, c] == 0).any()
    ]
    return [f"the training split lacks one side of a class, which cannot be learnt: {', '.join(lacking)}"] * bool(
        lacking
    )


def _without_texts(source: StudySource, texts: Mapping[str, Sequence[str | None]]) -> list[str]:
    """Says which splits have no text where the training split has some."""
    if not any(texts["train"]):
        return []
    blank = [name for name, split in source.splits() if len(split) and not any(texts[name])]
    return [f"{name}: no study has a text, though training studies have" for name in blank]


def _table(rows: Sequence[Row]) -> list[str]:
    titled = [("", ("train", "val", "test")), *rows]
    first = max(len(title) for title, _ in titled)
    widths = [max(len(cells[i]) for _, cells in titled) for i in range(3)]
    return [
        f"  {title:{first}}  " + "  ".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
        for title, cells in titled
    ]


def _notes(notes: Sequence[str]) -> list[str]:
    return [f"  note: {note}" for note in notes]
