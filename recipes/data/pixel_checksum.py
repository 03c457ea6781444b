"""A checksum of a split's images, by which an edited one is noticed.

It reads bytes and decodes nothing. A file of up to 128 KiB is read whole, of a larger one its size and 32 pieces of
2 KiB, spread evenly from the first byte to the last: a PNG ends with a checksum of its pixels, and a JPEG changes its
size with them. What can go unnoticed is an edit of a small place in a large file without compression.
"""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from recipes.data.image_files import ImageFiles
from recipes.data.medmnist.npz import ArraySplit
from recipes.data.tars.split import TarSplit

WHOLE_BYTES = 128 * 1024
PIECES, PIECE_BYTES = 32, 2048
_THREADS = 16
_CHUNK = 256


class Place(NamedTuple):
    """Where the bytes of an image lie: a file, or a part of one."""

    path: str
    offset: int = 0
    size: int | None = None


def pixel_checksum(split: Any) -> str | None:
    """Returns a checksum of the images of a split, ``None`` for drawn ones.

    Args:
        split: Of files, of arrays, or of tars.
    """
    if isinstance(split, ArraySplit):
        return hashlib.sha256(np.ascontiguousarray(split.images)).hexdigest()
    if isinstance(split, ImageFiles):
        places = [Place(path) for path in split.paths]
    elif isinstance(split, TarSplit):
        places = [Place(*place) for place in split.image_places()]
    else:
        return None
    unique = list(dict.fromkeys(places))
    with ThreadPoolExecutor(_THREADS) as pool:
        parts = pool.map(_checksums, [unique[start : start + _CHUNK] for start in range(0, len(unique), _CHUNK)])
        known = dict(zip(unique, (one for part in parts for one in part), strict=True))
    total = hashlib.sha256()
    for place in places:
        total.update(known[place])
    return total.hexdigest()


def _checksums(places: Sequence[Place]) -> list[bytes]:
    return [_checksum(place) for place in places]


def _checksum(place: Place) -> bytes:
    """Returns the checksum of one image, of zeros where there is none or it cannot be read."""
    total = hashlib.sha256()
    try:
        with open(place.path, "rb", buffering=0) as file:
            size = file.seek(0, 2) if place.size is None else place.size
            total.update(size.to_bytes(8, "little"))
            if size <= WHOLE_BYTES:
                file.seek(place.offset)
                total.update(file.read(size))
            else:
                for piece in range(PIECES):
                    file.seek(place.offset + piece * (size - PIECE_BYTES) // (PIECES - 1))
                    total.update(file.read(PIECE_BYTES))
    except OSError:
        return bytes(total.digest_size)
    return total.digest()
