"""Two hundred files that no honest user would upload, drawn from a seed."""

import struct
import zlib
from collections.abc import Callable, Iterator
from functools import cache
from io import BytesIO
from typing import NamedTuple

import numpy as np
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian

from tests.recipes.data.dicom_files import image_dataset

NAMES = (
    "scan.png", "../../../../etc/passwd", "..\\..\\windows\\win.ini", "/etc/shadow", "a/b/../../c.png",
    "%2e%2e%2fx.png",
    ".", "..", " ", "", ".hidden", "con.png", "x" * 300 + ".png", "naïve café.png", "\u202egnp.exe", "💀💉.dcm",
    "z\u0335\u0321a\u0337lgo.png", "line\nbreak.png", "tab\t.png", "nul\0byte.png", "quote\".png", "'; rm -rf ~ #.png",
    "$(touch x).png", "<img src=x onerror=alert(1)>.png", "شعاع.dcm", "胸部.jpg", "\ufeff.png",
    "a" * 100 + "/" + "b" * 100,
)  # fmt: skip


class Upload(NamedTuple):
    """A file, and whether it must be refused; one with flipped bits may still be an image."""

    kind: str
    name: str
    data: bytes
    refused: bool


def bad_uploads(seed: int, count: int, max_bytes: int) -> Iterator[Upload]:
    """Yields uploads of every kind, in turn.

    Args:
        seed: Of names and contents.
        count: How many.
        max_bytes: Largest upload that the server takes.
    """
    rng = np.random.default_rng(seed)
    for number in range(count):
        kind, make = KINDS[number % len(KINDS)]
        refused = kind not in ("flipped bits", "odd name")
        yield Upload(kind, NAMES[int(rng.integers(len(NAMES)))], make(rng, max_bytes), refused)


def sound_image(rng: np.random.Generator) -> bytes:
    """Returns a sound image file of a random kind."""
    pixels = rng.integers(0, 255, (40, 30), dtype=np.uint8)
    if rng.random() < 0.3:
        return _dicom(image_dataset(pixels))
    return _saved(Image.fromarray(pixels), ("PNG", "JPEG", "TIFF", "BMP")[int(rng.integers(4))])


def _saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def _dicom(dataset: Dataset, syntax: UID = ExplicitVRLittleEndian) -> bytes:
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    buffer = BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def _truncated(rng: np.random.Generator, _: int) -> bytes:
    # Cut within the first half: what is lost is pixels, and not a trailer that decoders do without.
    data = sound_image(rng)
    return data[: int(rng.integers(1, len(data) // 2))]


def _flipped(rng: np.random.Generator, _: int) -> bytes:
    data = np.frombuffer(sound_image(rng), np.uint8).copy()
    rows = rng.integers(0, len(data), int(rng.integers(1, 30)))
    data[rows] ^= rng.integers(1, 255, len(rows), dtype=np.uint8)
    return data.tobytes()


def _wrong_type(rng: np.random.Generator, _: int) -> bytes:
    begin = (
        b"%PDF-1.7\n", b"PK\x03\x04", b"\x7fELF", b"<!doctype html><script>", b"<svg xmlns='http://www.w3.org/2000/svg'>",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"MZ", b"#!/bin/sh\ntouch x\n", b"\x80\x04cos\nsystem\n",
        b"GIF89a\x05\x00\x05\x00", b"RIFF\x10\x00\x00\x00AVI ",
    )[int(rng.integers(11))]  # fmt: skip
    return begin + rng.bytes(int(rng.integers(200)))


def _magic_and_noise(rng: np.random.Generator, _: int) -> bytes:
    begin = (
        b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"II*\0", b"MM\0*", b"BM", b"RIFF\xff\xff\xff\xffWEBP",
        bytes(128) + b"DICM", b"\0\0\0\x0cjP  \r\n\x87\n",
    )[int(rng.integers(8))]  # fmt: skip
    return begin + rng.bytes(int(rng.integers(1, 3000)))


@cache
def _packed(count: int) -> bytes:
    """Returns zeros, compressed."""
    return zlib.compress(bytes(count), 1)


def _png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png_bomb(rng: np.random.Generator, _: int) -> bytes:
    """Claims, and if small enough holds, more pixels than are read."""
    side = int(rng.choice([7000, 9000, 20000, 100_000]))
    rows = _packed((side + 1) * (side if side < 10_000 else 10))
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _png_chunk(b"IHDR", header) + _png_chunk(b"IDAT", rows) + _png_chunk(b"IEND", b"")


def _text_bomb(_: np.random.Generator, __: int) -> bytes:
    """Holds a comment that unpacks to 80 MB, and no pixel."""
    text = b"Comment\0\0" + _packed(80_000_000)
    header = struct.pack(">IIBBBBB", 8, 8, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _png_chunk(b"IHDR", header) + _png_chunk(b"zTXt", text) + _png_chunk(b"IEND", b"")


def _jpeg_bomb(_: np.random.Generator, __: int) -> bytes:
    data = bytearray(_saved(Image.new("L", (16, 16)), "JPEG"))
    place = data.index(b"\xff\xc0")
    data[place + 5 : place + 9] = struct.pack(">HH", 65500, 65500)
    return bytes(data)


def _tiff_loop(_: np.random.Generator, __: int) -> bytes:
    """Holds a directory whose next directory is itself, and no image."""
    return b"II*\0" + struct.pack("<IH", 8, 1) + struct.pack("<HHII", 256, 3, 1, 9) + struct.pack("<I", 8)


def _frames(rng: np.random.Generator, _: int) -> bytes:
    frames = [Image.fromarray(rng.integers(0, 255, (9, 9), dtype=np.uint8)) for _ in range(3)]
    kind = ("TIFF", "PNG", "GIF", "WEBP")[int(rng.integers(4))]
    return _saved(frames[0], kind, save_all=True, append_images=frames[1:])


def _dicom_bomb(rng: np.random.Generator, _: int) -> bytes:
    """Claims more pixels than it holds, or unpacks to much more than it is."""
    dataset = image_dataset(np.zeros((8, 8), np.uint8))
    dataset.Rows = dataset.Columns = 65535
    if rng.random() < 0.5:
        return _dicom(dataset)
    dataset.PixelData = bytes(10_000_000)
    return _dicom(dataset, DeflatedExplicitVRLittleEndian)


def _dicom_nested(rng: np.random.Generator, _: int) -> bytes:
    inner = Dataset()
    for _ in range(int(rng.integers(20, 60))):
        outer = Dataset()
        outer.ReferencedImageSequence = DicomSequence([inner])
        inner = outer
    dataset = image_dataset(np.zeros((8, 8), np.uint8))
    dataset.ReferencedImageSequence = inner.ReferencedImageSequence
    del dataset.PixelData
    return _dicom(dataset)


def _too_large(rng: np.random.Generator, max_bytes: int) -> bytes:
    return sound_image(rng) + bytes(max_bytes + 1)


def _empty(_: np.random.Generator, __: int) -> bytes:
    return b""


def _odd_name(rng: np.random.Generator, _: int) -> bytes:
    return sound_image(rng)


KINDS: tuple[tuple[str, Callable[[np.random.Generator, int], bytes]], ...] = (
    ("empty", _empty),
    ("truncated", _truncated),
    ("wrong type", _wrong_type),
    ("magic and noise", _magic_and_noise),
    ("flipped bits", _flipped),
    ("odd name", _odd_name),
    ("PNG bomb", _png_bomb),
    ("JPEG bomb", _jpeg_bomb),
    ("text bomb", _text_bomb),
    ("TIFF loop", _tiff_loop),
    ("frames", _frames),
    ("DICOM bomb", _dicom_bomb),
    ("DICOM nested", _dicom_nested),
    ("too large", _too_large),
)
