import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from recipes.data.images.read import image_bytes_problem, image_problem, read_image, read_image_bytes
from recipes.shared import extras

GREY = np.array([[0, 17, 255], [3, 128, 64]], np.uint8)
COLOUR = np.stack([GREY, GREY[::-1], 255 - GREY], axis=-1)


def save(path, array, mode=None, **options):
    image = Image.fromarray(array)
    (image if mode is None else image.convert(mode)).save(path, **options)
    return path


@pytest.mark.parametrize("ending", ["png", "tiff", "bmp"])
@pytest.mark.parametrize("array", [GREY, COLOUR], ids=["grey", "colour"])
def test_eight_bits_are_kept(tmp_path, ending, array):
    read = read_image(save(tmp_path / f"a.{ending}", array))
    np.testing.assert_array_equal(read, array)
    assert read.dtype == np.uint8
    assert read.flags.writeable


def test_jpeg_is_read_grey_and_colour(tmp_path):
    ramp = np.tile(np.arange(0, 256, 4, dtype=np.uint8), (32, 1))
    grey = read_image(save(tmp_path / "a.jpg", ramp, quality=95))
    np.testing.assert_allclose(grey.astype(int), ramp, atol=4)
    colour = read_image(save(tmp_path / "b.jpeg", np.stack([ramp] * 3, -1), quality=95))
    np.testing.assert_allclose(colour.astype(int), np.stack([ramp] * 3, -1), atol=6)


def test_cmyk_becomes_rgb(tmp_path):
    read = read_image(save(tmp_path / "a.tiff", COLOUR, "CMYK"))
    np.testing.assert_array_equal(read, COLOUR)


@pytest.mark.parametrize("ending", ["png", "tiff"])
def test_sixteen_bits_are_stretched_from_smallest_to_largest(tmp_path, ending):
    twelve_bit = np.array([[1000, 2000], [3000, 4095]], np.uint16)
    read = read_image(save(tmp_path / f"a.{ending}", twelve_bit))
    np.testing.assert_array_equal(read, np.rint((twelve_bit - 1000.0) / 3095 * 255))


def test_big_endian_and_float_tiff(tmp_path):
    values = np.array([[0, 300], [600, 1200]])
    expected = [[0, 64], [128, 255]]
    np.testing.assert_array_equal(read_image(save(tmp_path / "a.tiff", values.astype(np.float32))), expected)
    (tmp_path / "b.tiff").write_bytes(tiff(values, photometric=1))
    np.testing.assert_array_equal(read_image(tmp_path / "b.tiff"), expected)


def tiff(values, *, photometric):
    """Writes a 16-bit grey TIFF by hand: little-endian for white-is-zero, which Pillow reads only so."""
    order = ">" if photometric == 1 else "<"
    height, width = values.shape
    data = values.astype(f"{order}u2").tobytes()
    tags = [(256, width), (257, height), (258, 16), (259, 1), (262, photometric), (273, 8), (278, height)]
    tags += [(277, 1), (279, len(data))]
    head = (b"MM" if order == ">" else b"II") + struct.pack(f"{order}HI", 42, 8 + len(data))
    entries = b"".join(struct.pack(f"{order}HHIHH", tag, 3, 1, value, 0) for tag, value in sorted(tags))
    return head + data + struct.pack(f"{order}H", len(tags)) + entries + bytes(4)


def test_white_is_zero_is_inverted(tmp_path):
    (tmp_path / "a.tiff").write_bytes(tiff(np.array([[0, 500], [1000, 250]]), photometric=0))
    np.testing.assert_array_equal(read_image(tmp_path / "a.tiff"), [[255, 127], [0, 191]])


def test_one_bit_becomes_black_and_white(tmp_path):
    read = read_image(save(tmp_path / "a.png", GREY > 100))
    np.testing.assert_array_equal(read, np.where(GREY > 100, 255, 0))


def test_palettes_of_colour_and_of_grey(tmp_path):
    indices = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8)).convert("P")
    indices.putdata([0, 1, 2, 1])
    indices.putpalette([10, 20, 30, 200, 0, 0, 9, 9, 9])
    indices.save(tmp_path / "colour.png")
    expected = [[[10, 20, 30], [200, 0, 0]], [[9, 9, 9], [200, 0, 0]]]
    np.testing.assert_array_equal(read_image(tmp_path / "colour.png"), expected)
    indices.putpalette([10, 10, 10, 200, 200, 200, 9, 9, 9])
    indices.save(tmp_path / "grey.png")
    np.testing.assert_array_equal(read_image(tmp_path / "grey.png"), [[10, 200], [9, 200]])


def test_transparency_is_laid_over_black(tmp_path):
    rgba = np.zeros((1, 3, 4), np.uint8)
    rgba[0, :, :3], rgba[0, :, 3] = 200, (255, 51, 0)
    expected = np.array([[200, 40, 0]])
    np.testing.assert_array_equal(read_image(save(tmp_path / "a.png", rgba)), np.stack([expected] * 3, -1))
    np.testing.assert_array_equal(read_image(save(tmp_path / "b.png", rgba, "LA")), expected)


def test_the_cameras_orientation_is_applied(tmp_path):
    wide = np.zeros((16, 32), np.uint8)
    wide[:, :16] = 255
    exif = Image.Exif()
    exif[274] = 6
    read = read_image(save(tmp_path / "a.jpg", wide, exif=exif, quality=95))
    assert read.shape == (32, 16)
    assert read[:12].min() > 240
    assert read[20:].max() < 15


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def damaged_files(folder):
    """Writes one file of each kind of damage: what is wrong with it, by path."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)
    for name in ("cut.png", "cut.jpg", "cut.tiff"):
        data = save(folder / name, noise).read_bytes()
        (folder / name).write_bytes(data[: len(data) // 2])
    data = bytearray(save(folder / "flipped.png", noise).read_bytes())
    data[len(data) // 2] ^= 0xFF
    (folder / "flipped.png").write_bytes(data)
    (folder / "text.png").write_text("not an image")
    (folder / "empty.png").touch()
    (folder / "folder.png").mkdir()
    frames = [Image.fromarray(noise), Image.fromarray(noise // 2)]
    frames[0].save(folder / "two.tiff", save_all=True, append_images=frames[1:])
    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 0, 0, 0, 0)
    (folder / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IEND", b""))
    return {
        "cut.png": r"cannot read the image '.*cut\.png'",
        "cut.jpg": r"cannot read the image '.*cut\.jpg': .*truncated",
        "cut.tiff": r"cannot read the image '.*cut\.tiff'",
        "flipped.png": r"cannot read the image '.*flipped\.png'",
        "text.png": r"cannot read the image '.*text\.png': cannot identify",
        "empty.png": r"empty\.png' is empty \(0 bytes\)",
        "folder.png": r"folder\.png' is not a file",
        "missing.png": r"missing\.png' does not exist",
        "two.tiff": r"two\.tiff': it holds 2 frames, expected one image",
        "bomb.png": r"bomb\.png': .*decompression bomb",
    }


def test_bad_files_are_refused_by_name_and_found_by_the_check(tmp_path):
    for name, message in damaged_files(tmp_path).items():
        with pytest.raises(ValueError, match=message):
            read_image(tmp_path / name)
        assert image_problem(tmp_path / name), name


def test_the_check_passes_sound_files(tmp_path):
    for ending in ("png", "jpg", "tiff", "bmp"):
        assert image_problem(save(tmp_path / f"a.{ending}", GREY)) is None


@pytest.mark.parametrize("function", [read_image, image_problem])
def test_says_how_to_install_what_is_missing(tmp_path, monkeypatch, function):
    def absent(module):
        raise ModuleNotFoundError(f"No module named {module!r}")

    path = save(tmp_path / "a.png", GREY)
    monkeypatch.setattr(extras.importlib, "import_module", absent)
    with pytest.raises(ImportError, match=r'reading an image needs PIL.*pip install "moekit\[recipes\]"'):
        function(path)


def test_bytes_are_read_and_checked_as_files_are(tmp_path):
    for ending in ("png", "tiff", "jpg"):
        path = save(tmp_path / f"a.{ending}", COLOUR)
        data = path.read_bytes()
        np.testing.assert_array_equal(read_image_bytes(data, "a"), read_image(path))
        assert image_bytes_problem(data, "a") is None
        assert image_bytes_problem(data[: len(data) // 2], "a"), ending
        with pytest.raises(ValueError, match="cannot read the image 'shard/a': "):
            read_image_bytes(data[: len(data) // 2], "shard/a")


def test_bytes_of_no_image():
    with pytest.raises(ValueError, match="cannot read the image 'a': cannot identify its kind: no decoder knows it"):
        read_image_bytes(b"text", "a")
    assert image_bytes_problem(b"text", "a") == "cannot identify its kind: no decoder knows it"
    with pytest.raises(ValueError, match=r"image 'a' is empty \(0 bytes\)"):
        read_image_bytes(b"", "a")
    assert image_bytes_problem(b"", "a") == "image 'a' is empty (0 bytes)"
