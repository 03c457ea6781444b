"""Decoded images on disk, fitted to the encoder's square: written by one process, read by any number.

They are kept in an SQLite file, which is whole after a kill at any moment: what was committed is there, and a later run
goes on behind it. An image is known by its path, size and time of change, so one that was edited is decoded anew.
"""

import fcntl
import functools
import hashlib
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from recipes.data.image_files import ImageFiles, Reader
from recipes.data.images.square import fit_square
from recipes.data.images.unreadable import UnreadableImageError
from recipes.data.sampling import as_it_is
from recipes.data.studies import StudySplit

_COMMIT_EVERY = 64
"""Images between two commits: what a kill loses at most."""

_BUSY_SECONDS = 60.0
_TABLE = "CREATE TABLE IF NOT EXISTS images (key BLOB PRIMARY KEY, channels INTEGER NOT NULL, pixels BLOB NOT NULL)"


class DecodedImages:
    """The images of a split that a cache holds; each process that reads opens the file for itself.

    Args:
        path: The SQLite file.
        size: Side of the square, in pixels.
        keys: Key of each image of the split, of :func:`image_keys`.
    """

    def __init__(self, path: Path, size: int, keys: Sequence[bytes]) -> None:
        self.path, self.size, self.keys = path, size, keys
        self._process: int | None = None
        self._connection: Any = None

    def __getstate__(self) -> dict[str, Any]:
        """Leaves the open file out of what travels to another process."""
        return self.__dict__ | {"_process": None, "_connection": None}

    def __call__(self, index: int) -> NDArray[np.uint8] | None:
        """Returns an image of the split, ``None`` if the cache lacks it."""
        if self._process != os.getpid():
            self._connection = sqlite3.connect(
                f"{self.path.absolute().as_uri()}?mode=ro", uri=True, timeout=_BUSY_SECONDS, check_same_thread=False
            )
            self._process = os.getpid()
        row = self._connection.execute(
            "SELECT channels, pixels FROM images WHERE key = ?", (self.keys[index],)
        ).fetchone()
        if row is None:
            return None
        channels, pixels = row
        image = np.frombuffer(bytearray(pixels), np.uint8)
        return image.reshape((self.size, self.size) if channels == 1 else (self.size, self.size, channels))


def fill_cache(
    split: StudySplit, folder: Path, size: int, *, limit_bytes: float, workers: int = 0, title: str | None = None
) -> DecodedImages:
    """Decodes the images of a split that the cache lacks, and returns them all.

    One process writes at a time: another waits until it is done, and then finds its images there. When the limit is
    reached, the rest is left out; such images are read from their files, as without a cache.

    Args:
        split: The studies; their images must be files.
        folder: Where the cache lies; several data sets and runs may share it.
        size: Side of the square to which images are fitted, in pixels.
        limit_bytes: Most pixels that the cache of this size may hold.
        workers: Processes that decode; 0 decodes in this one.
        title: Of a progress bar; none by default.

    Raises:
        ValueError: If the images are no files, the limit is not above 0, an image cannot be read, or the cache cannot
            be written or is none.
    """
    if not isinstance(split, ImageFiles):
        raise ValueError(
            "cache_folder is for data sets whose images are files, which these are not: leave --cache-folder out; "
            "--cache-images keeps images in memory"
        )
    if not limit_bytes > 0:
        raise ValueError(f"cache_gigabytes must be above 0, got {limit_bytes / 1e9:g}")
    path = Path(folder) / f"images-{size}.sqlite"
    keys = image_keys(split)
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with _only_writer(path), _connected(path) as database:
            _fill(database, split, keys, size, limit_bytes, workers, title)
    except (OSError, sqlite3.Error) as error:
        raise ValueError(
            f"cannot write the cache of decoded images {str(path)!r}: {error}. Delete it if it is damaged, give it "
            "another folder (--cache-folder), or a lower limit (--cache-gigabytes)"
        ) from error
    return DecodedImages(path, size, keys)


def existing_cache(split: StudySplit, folder: Path | None, size: int) -> DecodedImages | None:
    """Returns the images of a split that a cache holds already; ``None`` where there is no cache of this size.

    Args:
        split: The studies.
        folder: Where the cache lies, ``None`` for none.
        size: Side of the square, in pixels.
    """
    if folder is None or not isinstance(split, ImageFiles):
        return None
    path = Path(folder) / f"images-{size}.sqlite"
    return DecodedImages(path, size, image_keys(split)) if path.is_file() else None


def image_keys(split: ImageFiles) -> list[bytes]:
    """Returns what each image is known by: its file's path, size and time of change, and how it is read."""
    how = _reader_name(split.read)
    return [_key(path, detail, how) for path, detail in zip(split.paths, split.details, strict=True)]


def _key(path: str, detail: Any, how: str) -> bytes:
    try:
        status = os.stat(path)
        changed = (status.st_size, status.st_mtime_ns)
    except OSError:
        changed = (0, 0)
    return hashlib.blake2b(repr((os.path.abspath(path), changed, detail, how)).encode(), digest_size=16).digest()


def _reader_name(read: Reader) -> str:
    if isinstance(read, functools.partial):
        return f"{_reader_name(read.func)}{read.args}{sorted(read.keywords.items())}"
    return f"{read.__module__}.{read.__qualname__}"


@contextmanager
def _only_writer(path: Path) -> Iterator[None]:
    """Holds the lock that a process needs to write; waits for another that does."""
    with path.with_suffix(".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for another process that fills {path}", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def _connected(path: Path) -> Iterator[sqlite3.Connection]:
    database = sqlite3.connect(path, timeout=_BUSY_SECONDS)
    try:
        database.execute(_TABLE)
        yield database
    finally:
        database.close()


class _Decoding(Dataset[Any]):
    """Images of some rows, each with what is wrong with it."""

    def __init__(self, split: ImageFiles, rows: Sequence[int], size: int) -> None:
        self.split, self.rows, self.size = split, rows, size

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> tuple[int, NDArray[np.uint8] | None, str]:
        row = self.rows[place]
        try:
            return row, fit_square(self.split[row].image, self.size), ""
        except ValueError as error:
            return row, None, str(error)


def _fill(
    database: sqlite3.Connection,
    split: ImageFiles,
    keys: Sequence[bytes],
    size: int,
    limit_bytes: float,
    workers: int,
    title: str | None,
) -> None:
    present = {key for (key,) in database.execute("SELECT key FROM images")}
    held = database.execute("SELECT SUM(LENGTH(pixels)) FROM images").fetchone()[0] or 0
    first: dict[bytes, int] = {}  # an image with several captions is listed several times
    for row, key in enumerate(keys):
        if key not in present and split.paths[row]:
            first.setdefault(key, row)
    rows = list(first.values())
    if not rows or held + size * size > limit_bytes:
        _say_full(split, len(rows), limit_bytes)
        return
    # Without automatic batching: each item is one image, and workers take the items in turn.
    loader = DataLoader(_Decoding(split, rows, size), batch_size=None, num_workers=workers, collate_fn=as_it_is)
    for count, (row, image, problem) in enumerate(
        tqdm(loader, desc=title, total=len(rows), disable=title is None, leave=False, unit="image"), 1
    ):
        if image is None:
            database.commit()
            raise UnreadableImageError(problem)
        held += image.nbytes
        if held > limit_bytes:
            _say_full(split, len(rows) - count + 1, limit_bytes)
            break
        channels = 1 if image.ndim == 2 else image.shape[2]
        database.execute("INSERT OR REPLACE INTO images VALUES (?, ?, ?)", (keys[row], channels, image.tobytes()))
        if count % _COMMIT_EVERY == 0:
            database.commit()
    database.commit()


def _say_full(split: ImageFiles, left: int, limit_bytes: float) -> None:
    if left:
        print(
            f"the cache of decoded images is full ({limit_bytes / 1e9:g} GB): {left} of {len(split)} images are read "
            "from their files",
            flush=True,
        )
