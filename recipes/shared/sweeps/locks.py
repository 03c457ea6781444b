"""Locks between processes, which end with the process that holds them, however it ends."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def try_lock(path: Path) -> Iterator[bool]:
    """Tries to hold a lock for a block, without waiting.

    The lock is that of ``flock``: the system releases it when the process ends, killed or not. The file stays, for a
    process may have opened it that has yet to lock it.

    Args:
        path: The file to lock; its folder must exist.

    Yields:
        Whether the lock is held; ``False`` where another process holds it.
    """
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
