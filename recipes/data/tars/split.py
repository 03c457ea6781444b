"""Validation and test pairs in WebDataset tars, read in any order."""

import numpy as np
from numpy.typing import NDArray

from recipes.data.images.read import image_bytes_problem, read_image_bytes
from recipes.data.pairs import BadSample
from recipes.data.studies import Study
from recipes.data.tars.captions import Loaded, load_samples
from recipes.data.tars.files import Pattern, find_shards
from recipes.data.tars.samples import walk_samples


class TarSplit:
    """A `PairSplit` whose images stay in their tars.

    Building it reads every tar once: texts are kept, images are checked and left where they are. What cannot be read
    is left out and counted in ``notes``.

    Attributes:
        shards: The tars.
        ids: The tar's path, a slash and the sample's key.
        labels: ``float32`` of shape ``(N, 0)``.
        groups: Group of each pair; its id where it names none.
        texts: Text of each pair.
        modalities: Modality of each pair, ``None`` where it is not known.
        bad: What was left out, and why.
        notes: A line about it, if anything was.
    """

    def __init__(
        self, pattern: Pattern, *, modality: str | None = None, text_key: str = "text", force_dicom: bool = False
    ) -> None:
        """Reads the tars.

        Args:
            pattern: Path, glob, brace pattern, several, or a mapping of modalities to such
                (`recipes.data.tars.files.find_shards`).
            modality: Of samples that name none.
            text_key: Name of the text in a sample's json.
            force_dicom: Whether DICOM files without preamble and file meta group are read.

        Raises:
            ValueError: If the pattern names no tar or one that is missing, or no sample can be read.
        """
        self.shards = find_shards(pattern, modality)
        self.force_dicom = force_dicom
        kept: list[Loaded] = []
        bad: list[BadSample] = []
        self._places: list[tuple[int, int, int]] = []
        for number, shard in enumerate(self.shards):
            problem: str | None = None
            for pair in load_samples(shard, walk_samples(shard.path), text_key):
                if isinstance(pair, BadSample):
                    bad.append(pair)
                    continue
                # The captions of an image come one after the other, so it is checked with the first.
                if pair.number == 1:
                    problem = image_bytes_problem(pair.image, pair.id, force_dicom=force_dicom)
                if problem is not None:
                    bad.append(BadSample(pair.id, f"its image cannot be read: {problem}"))
                    continue
                kept.append(pair._replace(image=b""))
                self._places.append((number, *pair.sample.image))
        if not kept:
            reason = f"{bad[0].key}: {bad[0].reason}" if bad else "they are empty"
            raise ValueError(f"pattern {pattern!r}: no sample of {len(self.shards)} tars can be read ({reason})")
        self.ids: tuple[str, ...] = tuple(each.id for each in kept)
        self.groups: tuple[str, ...] = tuple(each.caption.group for each in kept)
        self.texts: tuple[str, ...] = tuple(each.caption.text for each in kept)
        self.modalities: tuple[str | None, ...] = tuple(each.caption.modality for each in kept)
        self.labels: NDArray[np.float32] = np.zeros((len(kept), 0), np.float32)
        self.bad = tuple(bad)
        self.notes = (_note(self.bad, len(kept)),) if bad else ()

    def __len__(self) -> int:
        return len(self.ids)

    def image_places(self) -> list[tuple[str, int, int]]:
        """Returns the tar of each image, and offset and size in it."""
        return [(str(self.shards[number].path), offset, size) for number, offset, size in self._places]

    def __getitem__(self, index: int) -> Study:
        """Reads one pair.

        Raises:
            ValueError: If the tar has changed since, so that the image cannot be read; the message names it.
        """
        number, offset, size = self._places[index]
        path = self.shards[number].path
        try:
            with path.open("rb") as file:
                file.seek(offset)
                data = file.read(size)
        except OSError as error:
            raise ValueError(f"cannot read the tar {str(path)!r}: {error}") from error
        return Study(
            id=self.ids[index],
            group=self.groups[index],
            image=read_image_bytes(data, self.ids[index], force_dicom=self.force_dicom),
            text=self.texts[index],
            labels=self.labels[index].copy(),
            modality=self.modalities[index],
        )


def _note(bad: tuple[BadSample, ...], kept: int) -> str:
    shown = "; ".join(f"{each.key}: {each.reason}" for each in bad[:5])
    more = "; ..." if len(bad) > 5 else ""
    return f"skipped {len(bad)} that cannot be read, kept {kept} samples ({shown}{more})"
