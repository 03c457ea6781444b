"""Reads an image from an unknown sender in a process of its own, with a limit of memory and of time.

Pixels are limited before they are decoded, but a decoder may fail in other ways: a table of contents without an end, a
compressed stream that is larger than its header says, or a fault in its native code. Here that ends the process, and
the caller gets a ``ValueError`` like any other.
"""

import multiprocessing as mp
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recipes.data.images.read import ImageLimits, read_image
from recipes.data.images.square import fit_square

MEMORY_BYTES = 4 * 2**30
"""Address space of the process; the largest image of the default limit takes a third of it."""


def read_confined(
    path: Path, size: int, *, force_dicom: bool = False, limits: ImageLimits | None = None, seconds: float = 30.0
) -> NDArray[np.uint8]:
    """Reads an image file and fits it to a square.

    Args:
        path: The file.
        size: Side of the square, in pixels.
        force_dicom: Whether DICOM files without preamble and file meta group are read.
        limits: What is refused before it is decoded; by default `ImageLimits`.
        seconds: How long it may take.

    Returns:
        ``(size, size)`` or ``(size, size, 3)``.

    Raises:
        ValueError: If the file cannot be read, or not within the limits.
    """
    context = _context()
    receiver, sender = context.Pipe(duplex=False)
    arguments = (sender, path, size, force_dicom, limits or ImageLimits(), seconds)
    process = context.Process(target=_read, args=arguments, daemon=True)
    process.start()
    sender.close()
    try:
        output = receiver.recv() if receiver.poll(seconds) else f"decoding it takes longer than {seconds:g} s"
    except EOFError:
        output = "its decoder failed"
    finally:
        receiver.close()
        process.kill()
        process.join()
        process.close()
    if isinstance(output, str):
        raise ValueError(output)
    return output


def _context() -> Any:
    """Returns how processes start: from one that has loaded the decoders and holds no model, where that can be had."""
    if "forkserver" not in mp.get_all_start_methods():
        return mp.get_context("spawn")
    context = mp.get_context("forkserver")
    # What is not installed is passed over.
    context.set_forkserver_preload([__name__, "PIL.Image", "pydicom", "pydicom.pixels"])
    return context


def _read(sender: Connection, path: Path, size: int, force_dicom: bool, limits: ImageLimits, seconds: float) -> None:
    _limit_resources(int(seconds) + 1)
    output: NDArray[np.uint8] | str
    try:
        output = fit_square(read_image(path, force_dicom=force_dicom, limits=limits), size)
    except MemoryError:
        output = "decoding it takes too much memory"
    except Exception as error:
        output = str(error) or type(error).__name__
    sender.send(output)


def _limit_resources(seconds: int) -> None:
    try:
        import resource
    except ImportError:  # not on Windows, where the time limit of the caller remains
        return
    for kind, value in ((resource.RLIMIT_AS, MEMORY_BYTES), (resource.RLIMIT_CPU, seconds), (resource.RLIMIT_FSIZE, 0)):
        _, hard = resource.getrlimit(kind)
        most = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (most, hard))
