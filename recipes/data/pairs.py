"""What contrastive pretraining reads: images with texts, and what kind of image each is."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

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
    """Training pairs that are too many to list: only where they lie and their modalities are known."""

    def build_index(self, *, workers: int = 0, title: str | None = None) -> Sequence[str]:
        """Finds out where the pairs lie, and says what was left out; the methods below do it where it is not done.

        Args:
            workers: Processes that read.
            title: Of a progress bar; ``None`` for none.
        """
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, place: int, /) -> Study:
        """Reads one pair; raises ``ValueError`` if it cannot be read."""
        ...

    def modality_of_each(self) -> Sequence[str | None]:
        """Returns the modality of each pair, ``None`` where it is not known."""
        ...

    def shuffle(self, rng: np.random.Generator) -> NDArray[np.int64]:
        """Draws the order of a pass: the place of every pair."""
        ...

    def iterate(self, *, seed: int = 0) -> Iterator[Study | BadSample]:
        """Yields pairs one after the other, for what needs some of them."""
        ...

    def checksum(self) -> str:
        """Returns what changes with the pairs."""
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
