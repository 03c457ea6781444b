"""Reads the texts and images of the samples of a WebDataset shard."""

import json
import math
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from recipes.data.images.read import read_image_bytes
from recipes.data.pairs import BadSample
from recipes.data.studies import Study
from recipes.data.tables.columns import modality_name
from recipes.data.tables.labels import is_blank
from recipes.data.tars.files import Shard
from recipes.data.tars.samples import TarSample

_CAPTION = "caption"


class Caption(NamedTuple):
    """One text of a sample, and what the sample says of its image.

    Attributes:
        text: Never blank.
        modality: ``None`` where it is not known.
        group: The sample's own id where it names none.
    """

    text: str
    modality: str | None
    group: str


class Loaded(NamedTuple):
    """A pair whose image is not decoded yet.

    Attributes:
        sample: Where its files lie.
        caption: Its text, modality and group.
        image: The image's file.
        number: Which of the sample's captions, from 1.
    """

    sample: TarSample
    caption: Caption
    image: bytes
    number: int = 1

    @property
    def id(self) -> str:
        """The sample's id, with ``#2``, ``#3``, ... behind it from the second caption on."""
        return self.sample.id if self.number == 1 else f"{self.sample.id}#{self.number}"

    def decode(self, *, force_dicom: bool = False) -> Study:
        """Decodes the image.

        Args:
            force_dicom: Whether DICOM data without preamble and file meta group is read.

        Raises:
            ValueError: If it cannot be read.
        """
        return Study(
            id=self.id,
            group=self.caption.group,
            image=read_image_bytes(self.image, self.id, force_dicom=force_dicom),
            text=self.caption.text,
            labels=np.zeros(0, np.float32),
            modality=self.caption.modality,
        )


def read_captions(sample: TarSample, file: BinaryIO, *, text_key: str, modality: str | None) -> list[Caption]:
    """Reads a sample's texts, modality and group.

    The text is the json's ``text_key``, else the ``.txt``, else the json's ``caption``. In the json it may be a list:
    each text is a caption of its own; blank ones and repeated ones are left out.

    Args:
        sample: The sample.
        file: Its shard, open.
        text_key: Name of the text in the json.
        modality: What to take where the json names none.

    Returns:
        The captions, at least one.

    Raises:
        ValueError: Saying what is wrong: no text, bytes that are not UTF-8, an invalid json, or a value of another
            type.
    """
    values = {} if sample.json is None else _json_object(sample.json.read(file))
    texts = _texts(values, text_key)
    if not texts and sample.text is not None:
        text = _decoded(sample.text.read(file), ".txt").strip()
        texts = [] if is_blank(text) else [text]
    texts = texts or _texts(values, _CAPTION)
    if not texts:
        places = f"the .json's {text_key!r} and {_CAPTION!r} are" if sample.json else "the .txt is"
        raise ValueError(f"has no text: {places} absent or blank")
    kind = modality_name(_string(values, "modality") or "")
    group = _string(values, "group", numbers=True) or sample.id
    return [Caption(text, modality if kind is None else kind, group) for text in texts]


def load_samples(shard: Shard, samples: Iterable[TarSample | BadSample], text_key: str) -> Iterator[Loaded | BadSample]:
    """Reads the files of samples of one shard.

    Args:
        shard: The shard, and the modality of samples that name none.
        samples: From `recipes.data.tars.samples.walk_samples`, or some of them.
        text_key: Name of the text in the json.

    Yields:
        Every caption of a sample with its image, and in place of a sample that cannot be read, what is wrong with it.
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
                captions = read_captions(sample, file, text_key=text_key, modality=shard.modality)
                image = sample.image.read(file)
            except (ValueError, OSError) as error:
                yield BadSample(sample.id, str(error))
                continue
            for number, caption in enumerate(captions, 1):
                yield Loaded(sample, caption, image, number)


def _decoded(data: bytes, ending: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"its {ending} is not UTF-8: {error.reason} at byte {error.start}") from None


def _json_object(data: bytes) -> dict[str, Any]:
    text = _decoded(data, ".json")
    try:
        values = json.loads(text)
    # RecursionError: thousands of brackets.
    except (ValueError, RecursionError) as error:
        raise ValueError(f"its .json is invalid: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"its .json must be an object, got {type(values).__name__}")
    return values


def _texts(values: dict[str, Any], key: str) -> list[str]:
    """Takes a string of the json or a list of strings: those that are not blank, each once."""
    value = values.get(key)
    each = [_as_string(one, key) for one in value] if isinstance(value, list) else [_as_string(value, key)]
    return list(dict.fromkeys(text for text in each if text is not None))


def _string(values: dict[str, Any], key: str, *, numbers: bool = False) -> str | None:
    """Takes a string of the json, or with ``numbers`` a whole number; ``None`` where it is absent or blank."""
    value = values.get(key)
    if numbers and not isinstance(value, bool) and isinstance(value, int | float) and float(value).is_integer():
        return str(int(value))
    return _as_string(value, key)


def _as_string(value: Any, key: str) -> str | None:
    # Tables with gaps are written with NaN, in place of a text or a number.
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if not isinstance(value, str):
        raise ValueError(f"its .json's {key!r} must be a string, got {type(value).__name__}")
    return None if is_blank(value) else value.strip()
