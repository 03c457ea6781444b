"""Images of unknown senders: limits before decoding, and decoders that fail in a process of their own."""

import os
import signal
import time
from io import BytesIO

import numpy as np
import pytest
from PIL import Image
from pydicom.uid import DeflatedExplicitVRLittleEndian

from recipes.data.images import confined
from recipes.data.images.read import ImageLimits, read_image
from recipes.data.images.square import fit_square
from tests.recipes.data.dicom_files import write_dicom

pytestmark = pytest.mark.slow
LIMITS = ImageLimits(max_pixels=10_000)


def test_an_image_within_the_limits_is_read_as_ever(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 4096, (80, 60), dtype=np.uint16)
    write_dicom(tmp_path / "scan.dcm", pixels, BitsStored=12, HighBit=11)
    Image.fromarray(pixels).save(tmp_path / "scan.png")
    Image.fromarray((pixels >> 4).astype(np.uint8)).save(tmp_path / "scan.jpg")
    for name in ("scan.dcm", "scan.png", "scan.jpg"):
        expected = fit_square(read_image(tmp_path / name), 32)
        np.testing.assert_array_equal(confined.read_confined(tmp_path / name, 32, limits=LIMITS), expected)


@pytest.mark.parametrize("name", ["large.png", "large.tif", "large.dcm", "deflated.dcm"])
def test_more_pixels_than_the_limit_are_not_decoded(tmp_path, name, monkeypatch):
    pixels = np.zeros((101, 100), np.uint8)
    if name.endswith(".dcm"):
        syntax = {"syntax": DeflatedExplicitVRLittleEndian} if name.startswith("deflated") else {}
        write_dicom(tmp_path / name, pixels, **syntax)
    else:
        Image.fromarray(pixels).save(tmp_path / name)
    assert read_image(tmp_path / name).shape == (101, 100)
    monkeypatch.setattr("PIL.Image.Image.load", None)
    monkeypatch.setattr("pydicom.pixels.pixel_array", None)
    with pytest.raises(ValueError, match=r"it claims 100 x 101 pixels, but at most 10,000 are read: scale it down"):
        read_image(tmp_path / name, limits=LIMITS)


def test_kinds_that_run_other_programs_are_not_opened(tmp_path):
    image = Image.new("L", (8, 8))
    for kind in ("EPS", "GIF", "PCX"):
        buffer = BytesIO()
        image.save(buffer, kind)
        (tmp_path / "image.png").write_bytes(buffer.getvalue())
        with pytest.raises(ValueError, match="no decoder knows it"):
            read_image(tmp_path / "image.png", limits=LIMITS)


def test_several_frames_are_refused_without_counting_them(tmp_path):
    frames = [Image.new("L", (8, 8), value) for value in (1, 2, 3)]
    frames[0].save(tmp_path / "frames.tif", save_all=True, append_images=frames[1:])
    with pytest.raises(ValueError, match="it holds several frames"):
        read_image(tmp_path / "frames.tif", limits=LIMITS)


def no_decoder(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)


def slow_decoder(*_, **__):
    time.sleep(60)


def hungry_decoder(*_, **__):
    return np.ones((confined.MEMORY_BYTES, 2), np.uint8)


@pytest.mark.parametrize(
    ("decoder", "message"),
    [
        (no_decoder, "its decoder failed"),
        (slow_decoder, r"decoding it takes longer than 0\.5 s"),
        (hungry_decoder, "decoding it takes too much memory"),
    ],
)
def test_a_decoder_that_fails_is_an_error_and_nothing_more(tmp_path, monkeypatch, decoder, message):
    # A fork takes the replaced function along, which a process that was started before does not.
    monkeypatch.setattr(confined, "_context", lambda: confined.mp.get_context("fork"))
    monkeypatch.setattr(confined, "read_image", decoder)
    with pytest.raises(ValueError, match=message):
        confined.read_confined(tmp_path / "any.png", 32, seconds=0.5 if decoder is slow_decoder else 30)
