"""Finds the samples of one WebDataset shard, and reads their texts and images.

A shard is an uncompressed tar of ``<key>.jpg`` and ``<key>.txt`` or ``<key>.json``, a sample's files side by side.
The walk reads headers only, so a reader pays for no image that is another reader's, and the same walk is the index
for random access.

The standard library's `tarfile` does it, not the package webdataset (1.0.2 was tried): there, a shard cut off inside a
file swallows the next shard's first sample when their keys are equal, a cut at or inside a header and a file without
an ending go unreported, errors do not name the sample, files stay open, and no offsets come out.
"""

import json
import os
import re
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from recipes.data.images.read import read_image_bytes
from recipes.data.pairs import BadSample
from recipes.data.studies import Study
from recipes.data.tables.columns import modality_name
from recipes.data.tars.files import Shard

_IMAGE_ENDINGS = ("jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff", "dcm", "dicom")
_NAME = re.compile(r"((?:.*/)?[^/.]+)\.([^/]+)", re.DOTALL)
_END_MARK = bytes(tarfile.BLOCKSIZE)
_CAPTION = "caption"


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


class Caption(NamedTuple):
    """What a sample says about its image.

    Attributes:
        text: Never blank.
        modality: ``None`` where it is not known.
        group: The sample's own id where none is given.
    """

    text: str
    modality: str | None
    group: str


class Loaded(NamedTuple):
    """A sample whose image is not decoded yet.

    Attributes:
        sample: Where its files lie.
        caption: What it says.
        image: The image's file.
    """

    sample: TarSample
    caption: Caption
    image: bytes

    def decode(self, *, force_dicom: bool = False) -> Study:
        """Decodes the image.

        Args:
            force_dicom: Whether DICOM data without preamble and file meta group is read.

        Raises:
            ValueError: If it cannot be read.
        """
        return Study(
            id=self.sample.id,
            group=self.caption.group,
            image=read_image_bytes(self.image, self.sample.id, force_dicom=force_dicom),
            text=self.caption.text,
            labels=np.zeros(0, np.float32),
            modality=self.caption.modality,
        )


class _Cut(NamedTuple):
    """Why a shard ends before its end, and in which file."""

    reason: str
    name: str | None = None


def walk_samples(shard: Path) -> Iterator[TarSample | BadSample]:
    """Yields the samples of a shard in its order, without reading texts or images.

    A key is a file's path up to the first dot of its name; what follows is the ending, in any case. Hidden files,
    ``__meta__`` files and other endings are passed over.

    Args:
        shard: Path of the tar.

    Yields:
        Samples; and in their place, with the reason: a key without an image or without a text, with several
        images, with a file twice, or that came before; a file without an ending; a sample that is cut off; and,
        under the shard's own name, a shard that cannot be opened, is damaged, or lacks tar's end mark.
    """
    key, files, seen = None, [], set()
    for entry in _files(shard):
        cut = entry if isinstance(entry, _Cut) else None
        name = entry.name if cut else entry[0]
        found = None if name is None else _NAME.fullmatch(name)
        if key is not None and (found is None or found[1] != key):
            yield _sample(f"{shard}/{key}", files, again=key in seen)
            seen.add(key)
            key, files = None, []
        if cut is not None:
            yield BadSample(str(shard) if found is None else f"{shard}/{found[1]}", cut.reason)
            return
        if found is None:
            yield BadSample(f"{shard}/{name}", "has no file ending, which says what a file holds")
            continue
        key = found[1]
        files.append((found[2].lower(), entry[1]))
    if key is not None:
        yield _sample(f"{shard}/{key}", files, again=key in seen)


def _files(shard: Path) -> Iterator[tuple[str, Span] | _Cut]:
    """Yields name and place of every file, and at last why there may be more, if so."""
    started = False
    try:
        with shard.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            size = os.fstat(file.fileno()).st_size
            while (member := tar.next()) is not None:
                started = True
                # The list would keep every header of a shard in memory.
                tar.members.clear()
                name = member.name.removeprefix("./")
                base = name.rpartition("/")[2]
                if not member.isreg() or member.issparse() or base.startswith(".") or _is_meta(name):
                    continue
                if member.offset_data + member.size > size:
                    yield _Cut(f"is cut off: the shard ends within {base!r}", name)
                    return
                yield name, Span(member.offset_data, member.size)
            # At a damaged header tarfile stops as if the shard were over.
            file.seek(tar.offset)
            mark = file.read(tarfile.BLOCKSIZE)
            if len(mark) < tarfile.BLOCKSIZE:
                yield _Cut("ends without tar's end mark: it may be cut off, with samples lost")
            elif mark != _END_MARK:
                yield _Cut(f"has a damaged header at byte {tar.offset}: what follows cannot be read")
    except (tarfile.TarError, OSError) as error:
        yield _Cut(f"is cut off or damaged: {error}" if started else f"cannot be read as a tar: {error}")


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
        return BadSample(sample_id, f"has no image, only {listed}. {beside}")
    if len(images) > 1:
        return BadSample(sample_id, f"has {len(images)} images, expected one: {listed}")
    if not spans.keys() & {"txt", "json"}:
        return BadSample(sample_id, f"has no .txt and no .json, only {listed}. {beside}")
    return TarSample(sample_id, spans[images[0]], spans.get("txt"), spans.get("json"))


def read_caption(sample: TarSample, file: BinaryIO, *, text_key: str, modality: str | None) -> Caption:
    """Reads a sample's text, modality and group.

    The text is the json's ``text_key``, else the ``.txt``, else the json's ``caption``.

    Args:
        sample: The sample.
        file: Its shard, open.
        text_key: Name of the text in the json.
        modality: What to take where the json names none.

    Raises:
        ValueError: Saying what is wrong: no text, bytes that are not UTF-8, an invalid json, or a value of another
            type.
    """
    fields = {} if sample.json is None else _json_object(sample.json.read(file))
    text = _string(fields, text_key)
    if text is None and sample.text is not None:
        text = _decoded(sample.text.read(file), ".txt").strip() or None
    if text is None:
        text = _string(fields, _CAPTION)
    if text is None:
        places = f"the .json's {text_key!r} and {_CAPTION!r} are" if sample.json else "the .txt is"
        raise ValueError(f"has no text: {places} absent or blank")
    group = fields.get("group")
    if isinstance(group, int) and not isinstance(group, bool):
        fields["group"] = str(group)
    named = modality_name(_string(fields, "modality") or "")
    return Caption(text, modality if named is None else named, _string(fields, "group") or sample.id)


def load_samples(shard: Shard, samples: Iterable[TarSample | BadSample], text_key: str) -> Iterator[Loaded | BadSample]:
    """Reads the files of samples of one shard.

    Args:
        shard: The shard, and the modality of samples that name none.
        samples: From `walk_samples`, or some of them.
        text_key: Name of the text in the json.

    Yields:
        What was read, and in place of a sample that cannot be, what is wrong with it.
    """
    with ExitStack() as stack:
        file: BinaryIO | None = None
        for sample in samples:
            if isinstance(sample, BadSample):
                yield sample
                continue
            try:
                # Not before a sample is asked for: a shard that is gone is one bad sample, of one reader.
                file = file or stack.enter_context(shard.path.open("rb"))
                caption = read_caption(sample, file, text_key=text_key, modality=shard.modality)
                loaded = Loaded(sample, caption, sample.image.read(file))
            except (ValueError, OSError) as error:
                yield BadSample(sample.id, str(error))
                continue
            yield loaded


def _decoded(data: bytes, ending: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"its {ending} is not UTF-8: {error.reason} at byte {error.start}") from None


def _json_object(data: bytes) -> dict[str, Any]:
    text = _decoded(data, ".json")
    try:
        fields = json.loads(text)
    # RecursionError: thousands of brackets.
    except (ValueError, RecursionError) as error:
        raise ValueError(f"its .json is invalid: {error}") from None
    if not isinstance(fields, dict):
        raise ValueError(f"its .json must be an object, got {type(fields).__name__}")
    return fields


def _string(fields: dict[str, Any], key: str) -> str | None:
    """Takes a string of the json; ``None`` where it is absent, null or blank."""
    value = fields.get(key)
    if value is None:
        return None
    if not isinstance(value, str):
        raise ValueError(f"its .json's {key!r} must be a string, got {type(value).__name__}")
    return value.strip() or None
