"""Writes small WebDataset tars."""

import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image


def png(shade, shape=(4, 6)):
    """The bytes of an image of one grey."""
    buffer = io.BytesIO()
    Image.fromarray(np.full(shape, shade, np.uint8)).save(buffer, "png")
    return buffer.getvalue()


def pair(key, text="a text", shade=7, **fields):
    """The files of one sample: text in a .txt, or in a .json beside other fields."""
    image = (f"{key}.png", png(shade))
    if fields:
        return [image, (f"{key}.json", json.dumps({"text": text, **fields}).encode())]
    return [image, (f"{key}.txt", text.encode())]


def write_tar(path, files):
    """Writes ``(name, bytes)`` in this order and returns the path."""
    with tarfile.open(path, "w") as tar:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


class Tars:
    """Functions that tests of tars share."""

    png = staticmethod(png)
    pair = staticmethod(pair)
    write = staticmethod(write_tar)

    @staticmethod
    def write_many(folder, counts, name="train"):
        """Writes tars of some numbers of pairs; the texts are ``TAR-KEY``. Returns the pattern of all."""
        folder.mkdir(exist_ok=True)
        for number, count in enumerate(counts):
            files = [file for key in range(count) for file in pair(f"{key:04d}", f"{number}-{key}", shade=key)]
            write_tar(folder / f"{name}-{number:03d}.tar", files)
        return str(folder / f"{name}-*.tar")


@pytest.fixture(scope="session")
def tars():
    """How to write tars."""
    return Tars
