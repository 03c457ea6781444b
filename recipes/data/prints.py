"""Prints of images, by which equal and nearly equal ones are known in other files, sizes and compressions.

A print is a digest of the decoded pixels, and a grey thumbnail of 32 by 32 pixels. Thumbnails of one image in another
brightness, contrast, size or compression correlate by nearly 1.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from recipes.data.arguments import remedy
from recipes.data.images.volumes import shown_image
from recipes.data.sampling import as_it_is
from recipes.data.studies import StudySplit

SIMILARITY = 0.99
"""Correlation of the thumbnails from which on two images count as nearly equal."""

_SIDE = 32
"""Side of the thumbnails, in pixels."""

_DIGEST_BYTES = 16

_ROWS, _COLUMNS = 512, 8192
"""Thumbnails that are compared at a time."""

_MOST = 5
"""Twins that are listed for one image."""


class Prints(NamedTuple):
    """What the ``N`` images of a split are compared by.

    Attributes:
        digests: ``(N, 16)``, of the decoded pixels; zeros for a study without image.
        thumbnails: ``(N, 32, 32)``, grey; of a volume of its middle slice, black for a study without image.
    """

    digests: NDArray[np.uint8]
    thumbnails: NDArray[np.uint8]

    def keys(self) -> list[bytes]:
        """Returns the digest of each image, empty for a study without one."""
        return [row.tobytes() if row.any() else b"" for row in self.digests]


class Twin(NamedTuple):
    """Two images whose thumbnails correlate and whose pixels differ.

    Attributes:
        first: Row of the first prints.
        second: Row of the second.
        similarity: Their correlation.
    """

    first: int
    second: int
    similarity: float


def check_similarity(similarity: float) -> None:
    """Refuses a correlation out of its range.

    Raises:
        ValueError: If it is not above 0 and at most 1.
    """
    if not 0 < similarity <= 1:
        raise ValueError(f"similarity must be above 0 and at most 1, got {similarity} (--similarity)")


def read_prints(split: StudySplit, *, workers: int = 0, title: str | None = None) -> Prints:
    """Reads every image of a split once.

    Args:
        split: The studies.
        workers: Processes that read images; 0 reads in this one.
        title: Of a progress bar; none by default.

    Raises:
        ValueError: If an image cannot be read; the message names it.
    """
    loader = DataLoader(_Reading(split), batch_size=None, num_workers=workers, collate_fn=as_it_is)
    prints = Prints(np.zeros((len(split), _DIGEST_BYTES), np.uint8), np.zeros((len(split), _SIDE, _SIDE), np.uint8))
    bar = tqdm(loader, desc=title, disable=title is None, leave=False, unit="image")
    for row, (digest, thumbnail, problem) in enumerate(bar):
        if problem:
            raise ValueError(
                problem + remedy(" ({on_bad_image=skip} leaves such images out, where the set has the option)")
            )
        prints.digests[row], prints.thumbnails[row] = digest, thumbnail
    return prints


def print_of(image: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Returns the digest ``(16,)`` and the thumbnail ``(32, 32)`` of an image or volume."""
    content = repr(image.shape).encode() + image.tobytes()
    digest = hashlib.blake2b(content, digest_size=_DIGEST_BYTES).digest()
    grey = Image.fromarray(shown_image(image)).convert("L").resize((_SIDE, _SIDE), Image.Resampling.BOX)
    return np.frombuffer(digest, np.uint8), np.asarray(grey)


def equal_pairs(first: Prints, second: Prints) -> Iterator[tuple[int, int]]:
    """Yields, for each image of ``second`` that ``first`` holds too, the first row of it there, and its own."""
    row_of: dict[bytes, int] = {}
    for row, digest in enumerate(first.keys()):
        row_of.setdefault(digest, row)
    for row, digest in enumerate(second.keys()):
        if digest and digest in row_of:
            yield row_of[digest], row


def twins(first: Prints, second: Prints, similarity: float) -> Iterator[Twin]:
    """Yields pairs whose thumbnails correlate and whose pixels differ, up to five for an image of ``second``.

    Args:
        first: Prints of some images.
        second: Of others; pairs come in their order, the most similar of an image first.
        similarity: Least correlation.
    """
    known, own = first.keys(), second.keys()
    for start in range(0, len(own), _ROWS):
        rows = _unit(second.thumbnails[start : start + _ROWS])
        best: dict[int, list[tuple[float, int]]] = defaultdict(list)
        for left in range(0, len(known), _COLUMNS):
            values = rows @ _unit(first.thumbnails[left : left + _COLUMNS]).T
            for row, column in zip(*np.nonzero(values >= similarity), strict=True):
                if own[start + row] != known[left + column]:
                    best[int(row)].append((float(values[row, column]), left + int(column)))
        for row in sorted(best):
            for value, column in sorted(best[row], key=lambda pair: (-pair[0], pair[1]))[:_MOST]:
                yield Twin(column, start + row, min(value, 1.0))


def _unit(thumbnails: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Returns thumbnails as vectors of mean 0 and length 1, of which a product is a correlation; 0 for a flat one."""
    flat = thumbnails.reshape(len(thumbnails), -1).astype(np.float32)
    flat -= flat.mean(1, keepdims=True)
    return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6)


class _Reading(Dataset[Any]):
    """The print of each image of a split, or what is wrong with it."""

    def __init__(self, split: StudySplit) -> None:
        self.split = split

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, row: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8], str]:
        try:
            image = self.split[row].image
        except ValueError as error:
            return _NO_DIGEST, _NO_THUMBNAIL, str(error)
        if image is None:  # compared with nothing: no digest equals it, and a flat thumbnail correlates with none
            return _NO_DIGEST, _NO_THUMBNAIL, ""
        return *print_of(image), ""


_NO_DIGEST = np.zeros(_DIGEST_BYTES, np.uint8)
_NO_THUMBNAIL = np.zeros((_SIDE, _SIDE), np.uint8)
