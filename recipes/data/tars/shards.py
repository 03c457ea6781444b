"""Image-text pairs in WebDataset tars: an index of places for training, listed pairs for validation and test."""

import hashlib
from collections.abc import Collection, Iterator, Sequence
from itertools import chain, islice

import numpy as np

from recipes.data.arguments import argument
from recipes.data.pairs import BadSample, PairSource
from recipes.data.sampling import Order
from recipes.data.studies import Study, check_splits_apart
from recipes.data.tables.columns import modality_name
from recipes.data.tars.captions import Loaded, load_samples
from recipes.data.tars.files import Pattern, Shard, find_shards, shard_arguments
from recipes.data.tars.index import ShardIndex, held_out_reason, index_shards, read_pair
from recipes.data.tars.samples import walk_samples
from recipes.data.tars.split import TarSplit

_CHECKED = 1 << 16
"""Bytes at the beginning of a tar that its checksum holds."""


class TarShards:
    """Training pairs of WebDataset tars (a `PairStream`): too many to list, read where they lie.

    Headers and texts are read once, before the first pair (:meth:`build_index`); images when their turn comes.
    :meth:`shuffle` draws the order of a pass: tars in any order, and each pair within ``shuffle_buffer`` places of its
    own, so that tars are read nearly from front to back. It mixes only samples that lie near each other, so shards
    should be mixed when they are written.

    `recipes.data.tars.samples` has the layout of a shard and what makes a sample bad: it is left out and counted.

    Attributes:
        shards: The tars.
        shuffle_buffer: How far a pair may move, in pairs.
        text_key: Name of the text in a sample's json.
        held_out: Groups that training must not see.
    """

    def __init__(
        self,
        pattern: Pattern,
        *,
        modality: str | None = None,
        text_key: str = "text",
        shuffle_buffer: int = 1000,
        force_dicom: bool = False,
        held_out: Collection[str] = (),
    ) -> None:
        """Finds the tars; reads none.

        Args:
            pattern: Path, glob, brace pattern, several, or a mapping of modalities to such
                (`recipes.data.tars.files.find_shards`).
            modality: Of samples that name none.
            text_key: Name of the text in a sample's json.
            shuffle_buffer: How far a pair may move, at least 1; 1 keeps the order within a shard.
            force_dicom: Whether DICOM files without preamble and file meta group are read.
            held_out: Groups of validation and test: their samples are left out.

        Raises:
            ValueError: If the pattern names no tar or one that is missing, or ``shuffle_buffer`` is below 1.
        """
        if shuffle_buffer < 1:
            raise ValueError(f"shuffle_buffer must be at least 1 (no shuffling), got {shuffle_buffer}")
        self.shards = find_shards(pattern, modality)
        self.text_key = text_key
        self.shuffle_buffer = shuffle_buffer
        self.force_dicom = force_dicom
        self.held_out = frozenset(held_out)
        self._index: ShardIndex | None = None

    def build_index(self, *, workers: int = 0, title: str | None = None) -> tuple[str, ...]:
        """Reads headers and texts of all tars, unless that is done already; what follows does it where it is not.

        Args:
            workers: Processes that read; 0 reads in this one.
            title: Of a progress bar; ``None`` for none.

        Returns:
            A line on what was left out, if anything was.

        Raises:
            ValueError: If no sample can be read.
        """
        if self._index is None:
            self._index = index_shards(self.shards, self.text_key, held_out=self.held_out, workers=workers, title=title)
        return self._index.notes()

    def __len__(self) -> int:
        return len(self._built())

    def __getitem__(self, place: int) -> Study:
        """Reads one pair.

        Raises:
            ValueError: If its image cannot be read, or its tar has changed.
        """
        return read_pair(self._built(), place, self.shards, self.text_key, force_dicom=self.force_dicom)

    def modality_of_each(self) -> list[str | None]:
        """Returns the modality of each pair, ``None`` where it is not known."""
        return self._built().modality_of_each()

    def shuffle(self, rng: np.random.Generator) -> Order:
        """Draws the order of a pass: the place of every pair."""
        of_shard = self._built().shard
        turns = rng.permutation(len(self.shards))
        order = np.argsort(turns[of_shard], kind="stable")
        return order[np.argsort(np.arange(len(order)) + self.shuffle_buffer * rng.random(len(order)), kind="stable")]

    def iterate(self, *, seed: int = 0) -> Iterator[Study | BadSample]:
        """Reads pairs one after the other, without an index: for some of them.

        Args:
            seed: Of the order of the tars, and of a shuffle within ``shuffle_buffer`` pairs; not negative.

        Yields:
            Pairs and, in between, samples that cannot be read or are held out.
        """
        rng = np.random.default_rng(seed)
        shards = [self.shards[place] for place in rng.permutation(len(self.shards))]
        each = (load_samples(shard, walk_samples(shard.path), self.text_key) for shard in shards)
        yield from map(self._decoded, _shuffled(chain.from_iterable(each), self.shuffle_buffer, rng))

    def first_texts(self, count: int) -> list[str]:
        """Returns the first texts of every shard: the same share of each, more where earlier ones have fewer.

        Args:
            count: How many at most.
        """
        texts: list[str] = []
        for place, shard in enumerate(self.shards):
            share = -(-(count - len(texts)) // (len(self.shards) - place))
            loaded = load_samples(shard, walk_samples(shard.path), self.text_key)
            texts.extend(islice((each.caption.text for each in loaded if isinstance(each, Loaded)), share))
        return texts

    def checksum(self) -> str:
        """Returns a checksum of names, sizes and beginnings of the tars; the whole of them would take too long."""
        total = hashlib.sha256()
        for shard in self.shards:
            total.update(f"{shard.path.name} {shard.path.stat().st_size}\n".encode())
            with shard.path.open("rb") as file:
                total.update(file.read(_CHECKED))
        return total.hexdigest()

    def _built(self) -> ShardIndex:
        self.build_index()
        assert self._index is not None
        return self._index

    def _decoded(self, sample: Loaded | BadSample) -> Study | BadSample:
        if isinstance(sample, BadSample):
            return sample
        if sample.caption.group in self.held_out:
            return BadSample(sample.id, held_out_reason(sample.caption.group))
        try:
            return sample.decode(force_dicom=self.force_dicom)
        except ValueError as error:
            return BadSample(sample.id, str(error))


def _shuffled(
    samples: Iterator[Loaded | BadSample], size: int, rng: np.random.Generator
) -> Iterator[Loaded | BadSample]:
    """Draws from a buffer that is kept full while there are samples."""
    buffer: list[Loaded | BadSample] = []
    for sample in samples:
        if len(buffer) < size - 1:
            buffer.append(sample)
            continue
        buffer.append(sample)
        yield _drawn(buffer, rng)
    while buffer:
        yield _drawn(buffer, rng)


def _drawn(buffer: list[Loaded | BadSample], rng: np.random.Generator) -> Loaded | BadSample:
    """Takes one out; the last takes its place."""
    chosen = int(rng.integers(len(buffer)))
    buffer[chosen], buffer[-1] = buffer[-1], buffer[chosen]
    return buffer.pop()


def shard_source(
    train: Pattern,
    val: Pattern,
    test: Pattern,
    *,
    modality: str | None = None,
    modalities: Sequence[str] | None = None,
    text_key: str = "text",
    shuffle_buffer: int = 1000,
    force_dicom: bool = False,
    name: str = "shards",
) -> PairSource:
    """Reads training pairs where they lie in their tars, validation and test as listed pairs.

    Validation and test are read through once, now; the training tars when their index is built. A training sample whose
    group is in validation or test is left out, so no group crosses.

    Args:
        train: Tars of the training split: path, glob, brace pattern, several, or a mapping of modalities to such
            (`recipes.data.tars.files.find_shards`).
        val: Tars of the validation split.
        test: Tars of the test split.
        modality: Of samples that name none.
        modalities: All that may occur. ``None``: those of validation and test, and those that the patterns name;
            a modality that only training samples' json names is then not among them.
        text_key: Name of the text in a sample's json.
        shuffle_buffer: How far a training pair may move, in pairs.
        force_dicom: Whether DICOM files without preamble and file meta group are read.
        name: Of the source.

    Raises:
        ValueError: If a pattern names no tar or a missing one, a tar is in two splits, a group is in validation and
            test, one of these has no readable sample, or one has a modality that ``modalities`` lacks.
    """
    splits = {
        split: TarSplit(pattern, modality=modality, text_key=text_key, force_dicom=force_dicom)
        for split, pattern in (("val", val), ("test", test))
    }
    held_out = {group for split in splits.values() for group in split.groups}
    stream = TarShards(
        train,
        modality=modality,
        text_key=text_key,
        shuffle_buffer=shuffle_buffer,
        force_dicom=force_dicom,
        held_out=held_out,
    )
    _check_shards_apart({"train": stream.shards, **{split: splits[split].shards for split in splits}})
    check_splits_apart(name, splits.items())
    occurring = {each for split in splits.values() for each in split.modalities if each is not None}
    if modalities is None:
        known = occurring | {shard.modality for shard in stream.shards if shard.modality is not None}
    else:
        known = {each for each in map(modality_name, modalities) if each is not None}
        if not occurring <= known:
            raise ValueError(
                f"{argument('modalities')}: {sorted(occurring - known)} occur in {name}, but got {sorted(known)} only"
            )
    notes = [f"{split}: {note}" for split, part in splits.items() for note in part.notes]
    notes.append(f"training pairs are read as a stream from {len(stream.shards)} tars")
    return PairSource(name, tuple(sorted(known)), stream, splits["val"], splits["test"], tuple(notes))


def _check_shards_apart(shards: dict[str, tuple[Shard, ...]]) -> None:
    seen: dict[str, str] = {}
    for split, listed in shards.items():
        for shard in listed:
            other = seen.setdefault(str(shard.path.resolve()), split)
            if other != split:
                raise ValueError(
                    f"the tar {str(shard.path)!r} is in two splits ({other} and {split}): give each split tars of its "
                    f"own ({shard_arguments()})"
                )
