"""Looks for studies of one split that another one holds too: the same patient, the same pixels, or nearly the same."""

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from recipes.data.arguments import remedy
from recipes.data.images.volumes import shown_image
from recipes.data.sampling import as_it_is
from recipes.data.studies import StudySource, StudySplit

LEAKAGE = "leakage.json"
"""What ``python -m recipes.data check --run RUN`` notes in a run, for its model card."""

_SIDE = 32
"""Side of the thumbnails that are compared, in pixels."""

_ROWS, _COLUMNS = 512, 8192
"""Thumbnails that are compared at a time."""

_MOST = 5
"""Twins in another split that are listed for one image."""


class Leak(NamedTuple):
    """Two studies in different splits that should not be apart.

    Attributes:
        kind: ``patient``, ``pixels`` (equal after decoding) or ``twins`` (thumbnails that correlate).
        first_split: Split of one study.
        first: Its id.
        second_split: Split of the other.
        second: Its id.
        similarity: Correlation of the thumbnails; 1 for equal pixels, ``None`` for a patient.
        group: The patient, for that kind.
    """

    kind: Literal["patient", "pixels", "twins"]
    first_split: str
    first: str
    second_split: str
    second: str
    similarity: float | None = None
    group: str | None = None


class _Prints(NamedTuple):
    """What the images of a split are compared by: a digest of the pixels, and ``(N, 32, 32)`` grey thumbnails."""

    digests: list[bytes]
    thumbnails: NDArray[np.uint8]


def find_leaks(
    source: StudySource, *, similarity: float = 0.99, workers: int = 0, progress: bool = False
) -> list[Leak]:
    """Lists pairs of studies that are in different splits and of one patient, of equal pixels or twins.

    Equal pixels are found by a digest of the decoded image, so a copy in another lossless file counts. Twins are found
    by the correlation of 32 by 32 grey thumbnails, which brightness, contrast, size and compression hardly change.
    A patient who crosses splits is listed once for each pair of splits; an image with equal ones once for each other
    split; of twins, up to five for an image.

    Args:
        source: The data set.
        similarity: Correlation from which on images are twins, in ``(0, 1]``.
        workers: Processes that read images; 0 reads in this one.
        progress: Whether progress bars are shown.

    Raises:
        ValueError: If ``similarity`` is out of its range, or an image cannot be read; the message names it.
    """
    if not 0 < similarity <= 1:
        raise ValueError(f"similarity must be above 0 and at most 1, got {similarity} (--similarity)")
    splits = dict(source.splits())
    prints = {name: _prints_of(split, workers, name if progress else None) for name, split in splits.items()}
    leaks = list(_patients(splits))
    for first, second in combinations(splits, 2):
        ids = (splits[first].ids, splits[second].ids)
        leaks += (Leak("pixels", first, ids[0][a], second, ids[1][b], 1.0) for a, b in _equal(prints, first, second))
        leaks += (
            Leak("twins", first, ids[0][a], second, ids[1][b], value)
            for a, b, value in _twins(prints[first], prints[second], similarity)
        )
    return leaks


def _patients(splits: dict[str, StudySplit]) -> Iterator[Leak]:
    """Yields the first study of each patient in each of two splits."""
    first: dict[str, dict[str, int]] = {name: {} for name in splits}
    for name, split in splits.items():
        for row, group in enumerate(split.groups):
            first[name].setdefault(group, row)
    for one, other in combinations(splits, 2):
        for group, row in first[one].items():
            if group in first[other]:
                ids = splits[one].ids[row], splits[other].ids[first[other][group]]
                yield Leak("patient", one, ids[0], other, ids[1], group=group)


def _equal(prints: dict[str, _Prints], first: str, second: str) -> Iterator[tuple[int, int]]:
    row_of: dict[bytes, int] = {}
    for row, digest in enumerate(prints[first].digests):
        row_of.setdefault(digest, row)
    for row, digest in enumerate(prints[second].digests):
        if digest and digest in row_of:
            yield row_of[digest], row


def _twins(first: _Prints, second: _Prints, similarity: float) -> Iterator[tuple[int, int, float]]:
    """Yields pairs whose thumbnails correlate and whose pixels differ, in the order of the second split."""
    for start in range(0, len(second.digests), _ROWS):
        rows = _unit(second.thumbnails[start : start + _ROWS])
        best: dict[int, list[tuple[float, int]]] = defaultdict(list)
        for left in range(0, len(first.digests), _COLUMNS):
            values = rows @ _unit(first.thumbnails[left : left + _COLUMNS]).T
            for row, column in zip(*np.nonzero(values >= similarity), strict=True):
                if second.digests[start + row] != first.digests[left + column]:
                    best[int(row)].append((float(values[row, column]), left + int(column)))
        for row in sorted(best):
            for value, column in sorted(best[row], key=lambda pair: (-pair[0], pair[1]))[:_MOST]:
                yield column, start + row, min(value, 1.0)


def _unit(thumbnails: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Returns thumbnails as vectors of mean 0 and length 1, of which a product is a correlation; 0 for a flat one."""
    flat = thumbnails.reshape(len(thumbnails), -1).astype(np.float32)
    flat -= flat.mean(1, keepdims=True)
    return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6)


class _Reading(Dataset[Any]):
    """The prints of each image of a split, or what is wrong with it."""

    def __init__(self, split: StudySplit) -> None:
        self.split = split

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, row: int) -> tuple[bytes, NDArray[np.uint8] | None, str]:
        try:
            image = self.split[row].image
        except ValueError as error:
            return b"", None, str(error)
        if (
            image is None
        ):  # compared with nothing: a blank digest equals no other, a flat thumbnail correlates with none
            return b"", np.zeros((_SIDE, _SIDE), np.uint8), ""
        thumbnail = shown_image(image)  # of a volume the middle slice
        digest = hashlib.blake2b(repr(image.shape).encode() + image.tobytes(), digest_size=16).digest()
        grey = Image.fromarray(thumbnail).convert("L").resize((_SIDE, _SIDE), Image.Resampling.BOX)
        return digest, np.asarray(grey), ""


def _prints_of(split: StudySplit, workers: int, title: str | None) -> _Prints:
    loader = DataLoader(_Reading(split), batch_size=None, num_workers=workers, collate_fn=as_it_is)
    digests: list[bytes] = []
    thumbnails: NDArray[np.uint8] = np.empty((len(split), _SIDE, _SIDE), np.uint8)
    for digest, thumbnail, problem in tqdm(loader, desc=title, disable=title is None, leave=False, unit="image"):
        if thumbnail is None:
            raise ValueError(
                problem + remedy(" ({on_bad_image=skip} leaves such images out, where the set has the option)")
            )
        thumbnails[len(digests)] = thumbnail
        digests.append(digest)
    return _Prints(digests, thumbnails)


def leak_lines(leaks: Sequence[Leak], most: int) -> list[str]:
    """Describes leaks in words, up to ``most`` of each kind, and counts them.

    Args:
        leaks: Of :func:`find_leaks`.
        most: Lines for each kind.
    """
    titles = {
        "patient": "patients in two splits",
        "pixels": "pairs of equal pixels",
        "twins": "pairs of nearly equal images",
    }
    lines = []
    for kind, title in titles.items():
        own = [leak for leak in leaks if leak.kind == kind]
        lines.append(f"{title}: {len(own)}")
        for leak in own[:most]:
            what = {"patient": f"patient {leak.group}: ", "pixels": "", "twins": f"{leak.similarity or 0:.4f}: "}[kind]
            lines.append(f"  {what}{leak.first_split} {leak.first} and {leak.second_split} {leak.second}")
        if len(own) > most:
            lines.append(f"  and {len(own) - most} more")
    return lines
