"""What contrastive pretraining reads: images with texts, and what kind of image each is."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

from recipes.data.studies import Study, StudySplit


@runtime_checkable
class PairSplit(StudySplit, Protocol):
    """A split of studies whose modality is known without reading any image."""

    modalities: Sequence[str | None]
    """``None`` where the modality is not known."""


class BadSample(NamedTuple):
    """A sample of a stream that could not be read.

    Attributes:
        key: Which one: the shard's file and the sample's key.
        reason: What is wrong with it.
    """

    key: str
    reason: str


@runtime_checkable
class PairStream(Protocol):
    """Training pairs that are read one after the other: too many to list."""

    def iterate(self, *, seed: int, epoch: int, part: int, num_parts: int) -> Iterator[Study | BadSample]:
        """Yields the pairs of one reader out of ``num_parts`` (ranks times workers), in an order of its own.

        Every pair goes to exactly one reader; ``(seed, epoch)`` decides the order.
        """
        ...

    def first_texts(self, count: int) -> list[str]:
        """Returns the first texts of the stream, for what must be known before training (a vocabulary)."""
        ...


@dataclass(frozen=True)
class PairSource:
    """Image-text pairs in three splits.

    Attributes:
        name: Short name, used in reports.
        modalities: Names of the modalities that occur, sorted.
        train: Training pairs, as a split or as a stream.
        val: Validation pairs.
        test: Test pairs.
        notes: What a reader of a report should know.
    """

    name: str
    modalities: tuple[str, ...]
    train: PairSplit | PairStream
    val: PairSplit
    test: PairSplit
    notes: tuple[str, ...] = ()

    def splits(self) -> Iterator[tuple[str, PairSplit | PairStream]]:
        """Yields ``(name, split)`` for train, val and test."""
        yield from (("train", self.train), ("val", self.val), ("test", self.test))
