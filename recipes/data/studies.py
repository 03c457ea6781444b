"""What a data set gives the recipes: studies, splits of studies, and a source of splits.

A *study* is one image with the text that came with it and its labels. Readers (phantom, manifest,
MedMNIST) differ in where studies come from; everything else uses only these types.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from recipes.data.arguments import remedy

Task = Literal["multi-label", "multi-class", "binary-class", "ordinal-regression"]
"""MedMNIST's names of the four kinds of target."""

SPLITS = ("train", "val", "test")


class Box(NamedTuple):
    """Where a finding lies: half-open pixel ranges of the study's image, x to the right, y down."""

    finding: str
    x0: float
    y0: float
    x1: float
    y1: float


@dataclass(frozen=True)
class Study:
    """One image, its text and its labels.

    Attributes:
        id: Unique within the source.
        group: The patient (or clip) the study belongs to; no group crosses a split.
        image: ``uint8`` of shape ``(H, W)`` or ``(H, W, 3)``, of a volume ``(D, H, W, 1)`` or ``(D, H, W, 3)``;
            ``None`` for a study that has a text alone.
        text: Report or clinical note, or ``None`` where there is none.
        labels: ``float32`` of shape ``(C,)``: 1 present, 0 absent, NaN unknown; one-hot for
            single-label tasks.
        boxes: Known places of findings, if any.
        modality: Kind of the image (``xray``, ``ct``, ``mri``, ``ultrasound``, ``pathology``, ``fundus``) or
            ``None`` where it is not known.
    """

    id: str
    group: str
    image: NDArray[np.uint8] | None
    text: str | None
    labels: NDArray[np.float32]
    boxes: tuple[Box, ...] = ()
    modality: str | None = None


@runtime_checkable
class StudySplit(Protocol):
    """A read-only sequence of studies of which all but the images is known without reading any.

    A split in which studies may lack an image says so by an attribute ``has_image``, read by `images_present`; such a
    study's ``image`` is ``None``.
    """

    ids: Sequence[str]
    labels: NDArray[np.float32]
    """Shape ``(N, C)``, NaN where unknown."""
    groups: Sequence[str]
    texts: Sequence[str | None]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Study: ...


@dataclass(frozen=True)
class StudySource:
    """A data set: its classes, its task and its three splits.

    Attributes:
        name: Short name, used in reports.
        task: What kind of target the labels are.
        classes: Names of the ``C`` classes, in the order of ``Study.labels``.
        train: Training split.
        val: Validation split.
        test: Test split.
        notes: What a reader of a report should know (files skipped, splits drawn, ...).
        class_sets: Names of classes over which the set's users take a mean of its own, by the name of the mean.
    """

    name: str
    task: Task
    classes: tuple[str, ...]
    train: StudySplit
    val: StudySplit
    test: StudySplit
    notes: tuple[str, ...] = ()
    class_sets: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def splits(self) -> Iterator[tuple[str, StudySplit]]:
        """Yields ``(name, split)`` for train, val and test."""
        yield from (("train", self.train), ("val", self.val), ("test", self.test))


def images_present(split: StudySplit) -> NDArray[np.bool_]:
    """Returns ``(N,)``, which studies have an image; all, unless the split's ``has_image`` says otherwise."""
    has_image = getattr(split, "has_image", None)
    return np.ones(len(split), np.bool_) if has_image is None else np.asarray(has_image, np.bool_)


def check_groups_apart(source: StudySource) -> None:
    """Refuses a source in which a group (a patient) lies in more than one split.

    Raises:
        ValueError: Naming the source, the splits and up to five of the groups.
    """
    check_splits_apart(source.name, source.splits())


def check_splits_apart(source: str, splits: Iterable[tuple[str, StudySplit]]) -> None:
    """Refuses named splits that share a group (a patient).

    Args:
        source: What the splits are of, for the message.
        splits: Name and split, as many as there are.

    Raises:
        ValueError: Naming the source, the splits and up to five of the groups.
    """
    seen: dict[str, str] = {}
    crossing: dict[str, tuple[str, str]] = {}
    for name, split in splits:
        for group in dict.fromkeys(split.groups):
            if seen.setdefault(group, name) != name:
                crossing[group] = (seen[group], name)
    if crossing:
        shown = ", ".join(f"{group!r} ({first} and {second})" for group, (first, second) in list(crossing.items())[:5])
        raise ValueError(
            f"{source}: groups must not cross splits, but {len(crossing)} do: {shown}. Split by patient"
            + remedy(" ({split_column=None} draws such a split)")
            + remedy(", or name the column that identifies one ({group_column})")
            + "."
        )
