"""Where every pair of WebDataset tars lies: what random access to them needs, in some 80 bytes a pair."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from recipes.data.arguments import argument
from recipes.data.pairs import BadSample
from recipes.data.sampling import as_it_is
from recipes.data.studies import Study
from recipes.data.tars.captions import Loaded, read_captions
from recipes.data.tars.files import Shard
from recipes.data.tars.samples import Span, TarSample, walk_samples

_FILES = ("image", "text", "json")
MOST_NAMED = 5
"""Bad samples that a note names."""


class ShardIndex(NamedTuple):
    """The pairs of some tars, N of them, in the order of the tars.

    Arrays rather than objects: processes that load data share their memory.

    Attributes:
        shard: ``(N,)``, place of the tar in the list.
        spans: ``(N, 3, 2)``, offset and size of image, text and json; -1 for none.
        number: ``(N,)``, which of the sample's captions, from 1.
        modality: ``(N,)``, place in ``modalities``; -1 where it is not known.
        key_ends: ``(N,)``, where the pair's key ends in ``keys``.
        keys: The keys, one after the other, in UTF-8.
        modalities: Names.
        bad: How many samples cannot be read.
        named: The first of them, with the reason.
    """

    shard: NDArray[np.int32]
    spans: NDArray[np.int64]
    number: NDArray[np.int16]
    modality: NDArray[np.int16]
    key_ends: NDArray[np.int64]
    keys: bytes
    modalities: tuple[str, ...]
    bad: int
    named: tuple[BadSample, ...]

    def __len__(self) -> int:
        return len(self.shard)

    def notes(self) -> tuple[str, ...]:
        """Says what was left out, if anything was."""
        if not self.bad:
            return ()
        shown = "; ".join(f"{each.key}: {each.reason}" for each in self.named)
        more = "; ..." if self.bad > len(self.named) else ""
        return (f"train: left out {self.bad} samples that cannot be read, kept {len(self.shard)} ({shown}{more})",)

    def modality_of_each(self) -> list[str | None]:
        """Returns the name of each pair's modality."""
        names: list[str | None] = [*self.modalities, None]
        return [names[code] for code in self.modality.tolist()]

    def sample(self, index: int, shards: Sequence[Shard]) -> tuple[Shard, TarSample, int]:
        """Returns a pair's tar, where its files lie there, and which of the captions it has."""
        shard = shards[int(self.shard[index])]
        start = int(self.key_ends[index - 1]) if index else 0
        key = self.keys[start : int(self.key_ends[index])].decode()
        image, text, json = (None if size < 0 else Span(offset, size) for offset, size in self.spans[index].tolist())
        assert image is not None
        return shard, TarSample(f"{shard.path}/{key}", image, text, json), int(self.number[index])


def index_shards(
    shards: Sequence[Shard],
    text_key: str,
    *,
    held_out: Collection[str] = (),
    workers: int = 0,
    title: str | None = None,
) -> ShardIndex:
    """Reads headers and texts of tars; no image is read.

    Args:
        shards: The tars.
        text_key: Name of the text in a sample's json.
        held_out: Groups whose samples are left out.
        workers: Processes that read; 0 reads in this one.
        title: Of a progress bar; ``None`` for none.

    Raises:
        ValueError: If no sample can be read.
    """
    readings = DataLoader(
        _Tars(shards, text_key, frozenset(held_out)), batch_size=None, num_workers=workers, collate_fn=as_it_is
    )
    parts = list(tqdm(readings, total=len(shards), desc=title, disable=title is None, unit="tar", leave=False))
    index = _joined(parts)
    if not len(index):
        reason = f"{index.named[0].key}: {index.named[0].reason}" if index.bad else "they are empty"
        raise ValueError(f"{argument('train')}: no sample of {len(shards)} tars can be read ({reason})")
    return index


def read_pair(index: ShardIndex, place: int, shards: Sequence[Shard], text_key: str, *, force_dicom: bool) -> Study:
    """Reads one pair.

    Args:
        index: Of the tars.
        place: Which pair.
        shards: The tars that were indexed.
        text_key: Name of the text in a sample's json.
        force_dicom: Whether DICOM data without preamble and file meta group is read.

    Raises:
        ValueError: If the image cannot be read, or the tar has changed since.
    """
    shard, sample, number = index.sample(place, shards)
    try:
        with shard.path.open("rb") as file:
            captions = read_captions(sample, file, text_key=text_key, modality=shard.modality)
            image = sample.image.read(file)
    except OSError as error:
        raise ValueError(f"cannot read the tar {str(shard.path)!r}: {error}") from error
    if number > len(captions):
        raise ValueError(f"the tar {str(shard.path)!r} has changed since it was indexed")
    return Loaded(sample, captions[number - 1], image, number).decode(force_dicom=force_dicom)


class _Tars(Dataset[ShardIndex]):
    """The index of each tar, for processes that read some of them each."""

    def __init__(self, shards: Sequence[Shard], text_key: str, held_out: frozenset[str]) -> None:
        self.shards, self.text_key, self.held_out = shards, text_key, held_out

    def __len__(self) -> int:
        return len(self.shards)

    def __getitem__(self, place: int) -> ShardIndex:
        shard = self.shards[place]
        spans: list[tuple[tuple[int, int], ...]] = []
        rows: list[tuple[int, str | None, bytes]] = []
        bad, named = 0, []
        for each in _pairs(shard, self.text_key, self.held_out):
            if isinstance(each, BadSample):
                bad += 1
                named += [each] if bad <= MOST_NAMED else []
                continue
            sample, number, modality = each
            files = (getattr(sample, name) for name in _FILES)
            spans.append(tuple((-1, -1) if span is None else (span.offset, span.size) for span in files))
            rows.append((number, modality, sample.id.removeprefix(f"{shard.path}/").encode()))
        names = tuple(sorted({modality for _, modality, _ in rows if modality is not None}))
        codes = {name: code for code, name in enumerate(names)}
        return ShardIndex(
            np.full(len(rows), place, np.int32),
            np.array(spans, np.int64).reshape(-1, len(_FILES), 2),
            np.array([number for number, _, _ in rows], np.int16),
            np.array([-1 if modality is None else codes[modality] for _, modality, _ in rows], np.int16),
            np.cumsum([len(key) for _, _, key in rows], dtype=np.int64),
            b"".join(key for _, _, key in rows),
            names,
            bad,
            tuple(named),
        )


def _pairs(
    shard: Shard, text_key: str, held_out: frozenset[str]
) -> Iterator[tuple[TarSample, int, str | None] | BadSample]:
    """Yields every caption of every sample of a tar: where it lies, its number and its modality."""
    with ExitStack() as stack:
        file: BinaryIO | None = None
        for sample in walk_samples(shard.path):
            if isinstance(sample, BadSample):
                yield sample
                continue
            try:
                # Not before there is a sample: a tar that is gone is one bad sample.
                file = file or stack.enter_context(shard.path.open("rb"))
                captions = read_captions(sample, file, text_key=text_key, modality=shard.modality)
            except (ValueError, OSError) as error:
                yield BadSample(sample.id, str(error))
                continue
            if captions[0].group in held_out:
                yield BadSample(sample.id, held_out_reason(captions[0].group))
                continue
            for number, caption in enumerate(captions, 1):
                yield sample, number, caption.modality


def held_out_reason(group: str) -> str:
    """Says why a training sample is left out that could be read."""
    return f"its group {group!r} is held out for validation or test"


def _joined(parts: Sequence[ShardIndex]) -> ShardIndex:
    names = tuple(sorted({name for part in parts for name in part.modalities}))
    codes = [np.array([*(names.index(name) for name in part.modalities), -1], np.int16) for part in parts]
    starts = np.cumsum([0, *(len(part.keys) for part in parts)])
    return ShardIndex(
        np.concatenate([part.shard for part in parts]),
        np.concatenate([part.spans for part in parts]),
        np.concatenate([part.number for part in parts]),
        np.concatenate([own[part.modality] for part, own in zip(parts, codes, strict=True)]),
        np.concatenate([part.key_ends + start for part, start in zip(parts, starts, strict=False)]),
        b"".join(part.keys for part in parts),
        names,
        sum(part.bad for part in parts),
        tuple(each for part in parts for each in part.named)[:MOST_NAMED],
    )
