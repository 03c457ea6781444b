"""Image-text pairs in WebDataset tars: a stream for training, random access for validation and test."""

from collections.abc import Collection, Iterator, Sequence
from itertools import count as counter
from itertools import islice

import numpy as np

from recipes.data.arguments import argument
from recipes.data.pairs import BadSample, PairSource
from recipes.data.studies import Study, check_splits_apart
from recipes.data.tables.columns import modality_name
from recipes.data.tars.captions import Loaded, load_samples
from recipes.data.tars.files import Pattern, Shard, find_shards, shard_arguments
from recipes.data.tars.samples import walk_samples
from recipes.data.tars.split import TarSplit


class TarShards:
    """Training pairs of WebDataset tars, read one after the other (a `PairStream`).

    Every sample goes to exactly one of the readers (ranks times workers). As many shards as divide evenly by the
    number of readers are dealt whole; the samples of the remaining shards are dealt one by one, so readers get
    nearly the same number, and there may be more readers than shards. A reader walks the headers of a shared shard,
    but reads its own samples only.

    ``(seed, epoch)`` decides the order of the shards and of the shuffle. The shuffle takes each sample from a buffer
    of ``shuffle_buffer`` undecoded ones; it mixes only samples that lie near each other, so shards should be mixed when
    they are written. `recipes.data.tars.samples` has the layout of a shard and what makes a sample bad: it is yielded
    as a `BadSample`, never raised.

    Attributes:
        shards: The tars.
        shuffle_buffer: Samples to draw from.
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
            shuffle_buffer: Samples to draw from, at least 1; 1 keeps the order within a shard.
            force_dicom: Whether DICOM files without preamble and file meta group are read.
            held_out: Groups of validation and test: their samples become `BadSample`.

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

    def iterate(self, *, seed: int, epoch: int, part: int, num_parts: int) -> Iterator[Study | BadSample]:
        """Yields the pairs of one reader.

        Args:
            seed: Of the order; not negative.
            epoch: Changes the order; not negative.
            part: This reader, from 0.
            num_parts: All readers.

        Returns:
            An iterator over pairs and, in between, samples that cannot be read.

        Raises:
            ValueError: If ``seed`` or ``epoch`` is negative, or ``part`` is not in ``0 .. num_parts - 1``.
        """
        if seed < 0 or epoch < 0:
            raise ValueError(f"seed and epoch must not be negative, got seed={seed} and epoch={epoch}")
        if not 0 <= part < num_parts:
            raise ValueError(f"part must be in 0 .. num_parts - 1, got part={part} and num_parts={num_parts}")
        order = np.random.default_rng((seed, epoch)).permutation(len(self.shards))
        shuffle = np.random.default_rng((seed, epoch, part, num_parts))
        dealt = self._dealt([self.shards[i] for i in order], part, num_parts)
        return self._decoded(_shuffled(dealt, self.shuffle_buffer, shuffle))

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

    def _dealt(self, shards: Sequence[Shard], part: int, num_parts: int) -> Iterator[Loaded | BadSample]:
        """Reads the samples that are this reader's."""
        shared_from = len(shards) - len(shards) % num_parts
        for shard in shards[part:shared_from:num_parts]:
            yield from load_samples(shard, walk_samples(shard.path), self.text_key)
        turn = counter()
        for shard in shards[shared_from:]:
            mine = (sample for sample in walk_samples(shard.path) if next(turn) % num_parts == part)
            yield from load_samples(shard, mine, self.text_key)

    def _decoded(self, samples: Iterator[Loaded | BadSample]) -> Iterator[Study | BadSample]:
        for sample in samples:
            if isinstance(sample, BadSample):
                yield sample
            elif sample.caption.group in self.held_out:
                reason = f"its group {sample.caption.group!r} is held out for validation or test"
                yield BadSample(sample.id, reason)
            else:
                try:
                    study = sample.decode(force_dicom=self.force_dicom)
                except ValueError as error:
                    yield BadSample(sample.id, str(error))
                    continue
                yield study


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
    """Reads training pairs as a stream of tars, validation and test by random access.

    Validation and test are read through once, now. The groups of the training stream are not known before it is
    read: a training sample whose group is in validation or test becomes a `BadSample`, so no group crosses.

    Args:
        train: Tars of the training split: path, glob, brace pattern, several, or a mapping of modalities to such
            (`recipes.data.tars.files.find_shards`).
        val: Tars of the validation split.
        test: Tars of the test split.
        modality: Of samples that name none.
        modalities: All that may occur. ``None``: those of validation and test, and those that the patterns name;
            a modality that only training samples' json names is then not among them.
        text_key: Name of the text in a sample's json.
        shuffle_buffer: Training samples to draw from.
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
    notes.append(f"training pairs are read as a stream of {len(stream.shards)} tars")
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
