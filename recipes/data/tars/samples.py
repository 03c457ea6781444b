"""Finds the samples of one WebDataset shard.

A shard is an uncompressed tar of ``<key>.jpg`` and ``<key>.txt`` or ``<key>.json``, a sample's files side by side.
The walk reads headers only, so a reader pays for no image that is another reader's, and the same walk is the index
for random access.

The standard library's `tarfile` does it, not the package webdataset (1.0.2 was tried): there, a shard cut off inside a
file swallows the next shard's first sample when their keys are equal, a cut at or inside a header and a file without
an ending go unreported, errors do not name the sample, files stay open, and no offsets come out.
"""

import os
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from recipes.data.pairs import BadSample

_IMAGE_ENDINGS = ("jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff", "dcm", "dicom")
_NAME = re.compile(r"((?:.*/)?[^/.]+(?:\.[^/.]+)*?)((?:\.(?!\d+(?:\.|$))[^/.]+)+)", re.DOTALL)
"""Key and ending: the shortest key behind which no part between dots is a number."""

_END_MARK = bytes(tarfile.BLOCKSIZE)
_SCANNED = 2048 * tarfile.BLOCKSIZE
"""Bytes read at a time while looking for what follows an end mark."""


class Span(NamedTuple):
    """Bytes of a shard.

    Attributes:
        offset: Where they begin.
        size: How many.
    """

    offset: int
    size: int

    def read(self, file: BinaryIO) -> bytes:
        """Reads them from the open shard."""
        file.seek(self.offset)
        return file.read(self.size)


class TarSample(NamedTuple):
    """Where a sample's files lie in its shard.

    Attributes:
        id: The shard's path, a slash and the sample's key.
        image: Its image.
        text: Its ``.txt``, if any.
        json: Its ``.json``, if any.
    """

    id: str
    image: Span
    text: Span | None
    json: Span | None


class _File(NamedTuple):
    """A file of a shard."""

    name: str
    span: Span


class _End(NamedTuple):
    """An end mark: the next file is of another sample, whatever its key."""

    name: None = None


class _Cut(NamedTuple):
    """Why a shard ends before its end, and in which file."""

    reason: str
    name: str | None = None


def walk_samples(shard: Path) -> Iterator[TarSample | BadSample]:
    """Yields the samples of a shard in its order, without reading texts or images.

    A key is a file's path up to the first dot of its name behind which no part between dots is a number; what follows
    is the ending, in any case. So ``0.seg.png`` is of the key ``0``, as in WebDataset, and ``1.2.840.113.png`` of the
    key ``1.2.840.113``, a DICOM UID. Hidden files, ``__meta__`` files and other endings are passed over.

    What follows an end mark, as in tars that were joined byte by byte, is read too.

    Args:
        shard: Path of the tar.

    Yields:
        Samples; and in their place, with the reason: a key without an image or without a text, with several
        images, with a file twice, or that came before; a file without an ending; a sample that is cut off; and,
        under the shard's own name, a shard that cannot be opened, is damaged, lacks tar's end mark, or has other
        bytes behind it.
    """
    key, files, seen = None, [], set()
    for entry in _files(shard):
        parts = None if entry.name is None else _NAME.fullmatch(entry.name)
        if key is not None and (parts is None or parts[1] != key):
            yield _sample(f"{shard}/{key}", files, again=key in seen)
            seen.add(key)
            key, files = None, []
        if isinstance(entry, _Cut):
            yield BadSample(str(shard) if parts is None else f"{shard}/{parts[1]}", entry.reason)
            return
        if isinstance(entry, _File) and parts is None:
            yield BadSample(f"{shard}/{entry.name}", "has no file ending, which says what a file holds")
        elif isinstance(entry, _File):
            key = parts[1]
            files.append((parts[2][1:].lower(), entry.span))
    if key is not None:
        yield _sample(f"{shard}/{key}", files, again=key in seen)


def _files(shard: Path) -> Iterator[_File | _End | _Cut]:
    """Yields name and place of every file, every end mark, and at last why there may be more, if so."""
    started = False
    try:
        with shard.open("rb") as file:
            start: int | None = 0
            while start is not None:
                file.seek(start)
                with tarfile.open(fileobj=file, mode="r:") as tar:
                    for entry in _members(tar, os.fstat(file.fileno()).st_size):
                        started = True
                        yield entry
                        if isinstance(entry, _Cut):
                            return
                    end = tar.offset
                if start and end == start:
                    yield _Cut(f"has bytes behind its end mark, from byte {start} on, that are no tar")
                    return
                # At a damaged header tarfile stops as if the shard were over.
                file.seek(end)
                mark = file.read(tarfile.BLOCKSIZE)
                if len(mark) < tarfile.BLOCKSIZE:
                    yield _Cut("ends without tar's end mark: it may be cut off, with samples lost")
                    return
                if mark != _END_MARK:
                    yield _Cut(f"has a damaged header at byte {end}: what follows cannot be read")
                    return
                yield _End()
                start = _first_content(file)
    except (tarfile.TarError, OSError) as error:
        yield _Cut(f"is cut off or damaged: {error}" if started else f"cannot be read as a tar: {error}")


def _members(tar: tarfile.TarFile, size: int) -> Iterator[_File | _Cut]:
    """Yields the files of a tar up to its end mark, or up to where the shard of ``size`` bytes is cut off."""
    while (member := tar.next()) is not None:
        # The list would keep every header of a shard in memory.
        tar.members.clear()
        name = member.name.removeprefix("./")
        base = name.rpartition("/")[2]
        if not member.isreg() or member.issparse() or base.startswith(".") or _is_meta(name):
            continue
        if member.offset_data + member.size > size:
            yield _Cut(f"is cut off: the shard ends within {base!r}", name)
            return
        yield _File(name, Span(member.offset_data, member.size))


def _first_content(file: BinaryIO) -> int | None:
    """Finds the first block that is not all zeros from here on, ``None`` if there is none."""
    while data := file.read(_SCANNED):
        rest = data.lstrip(b"\0")
        if rest:
            place = file.tell() - len(rest)
            return place - place % tarfile.BLOCKSIZE
    return None


def _is_meta(name: str) -> bool:
    return name.startswith("__") and name.partition("/")[0].endswith("__")


def _sample(sample_id: str, files: list[tuple[str, Span]], *, again: bool) -> TarSample | BadSample:
    """Takes the files of one key for a sample, or says why not."""
    endings = [ending for ending, _ in files]
    listed = ", ".join(f".{ending}" for ending in endings)
    spans = dict(files)
    images = [ending for ending in spans if ending in _IMAGE_ENDINGS]
    beside = "A sample's files must stand side by side in the shard"
    if again:
        return BadSample(sample_id, f"its key came before. {beside}, and keys differ")
    if len(spans) < len(files):
        return BadSample(sample_id, f"holds a file twice: {listed}")
    if not images:
        return BadSample(sample_id, f"has no image, only {listed}. {beside}{_dots(endings)}")
    if len(images) > 1:
        return BadSample(sample_id, f"has {len(images)} images, expected one: {listed}")
    if not spans.keys() & {"txt", "json"}:
        return BadSample(sample_id, f"has no .txt and no .json, only {listed}. {beside}{_dots(endings)}")
    return TarSample(sample_id, spans[images[0]], spans.get("txt"), spans.get("json"))


def _dots(endings: list[str]) -> str:
    """Says how keys end, where the key of a file may have been meant to go on behind its first dot."""
    if not any("." in ending for ending in endings):
        return ""
    return ". A key ends at the first dot of a name, unless a number follows: replace other dots in keys by hyphens"
