"""An edited image is noticed, in whatever way images are kept."""

import time

import numpy as np
import pytest
from PIL import Image

from recipes.data.image_files import ImageFiles
from recipes.data.medmnist.npz import ArraySplit
from recipes.data.phantom import phantom_source
from recipes.data.pixel_checksum import WHOLE_BYTES, pixel_checksum
from recipes.data.tars.split import TarSplit
from recipes.shared.fingerprint import check_unchanged, write_fingerprint
from recipes.shared.runs import read_json, write_json


def files(paths):
    names = tuple(map(str, range(len(paths))))
    labels = np.zeros((len(paths), 1), np.float32)
    none = (None,) * len(paths)
    return ImageFiles(names, tuple(map(str, paths)), ((),) * len(paths), labels, names, none, none)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP", "JPEG"])
@pytest.mark.parametrize("side", [64, 900])
def test_an_edited_image_is_noticed(tmp_path, kind, side):
    pixels = np.random.default_rng(0).integers(0, 255, (side, side), dtype=np.uint8)
    paths = [tmp_path / f"{i}" for i in range(3)]
    for path in paths:
        Image.fromarray(pixels).save(path, kind)
    assert (paths[0].stat().st_size > WHOLE_BYTES) == (side == 900)
    before = pixel_checksum(files(paths))
    assert pixel_checksum(files(paths)) == before
    # Of a large file without compression every 25th kilobyte is read.
    rows = side // 20 if kind in ("PNG", "JPEG") or side == 64 else side // 12
    pixels[side // 2 : side // 2 + rows] ^= 255
    Image.fromarray(pixels).save(paths[1], kind)
    assert pixel_checksum(files(paths)) != before


def test_copies_elsewhere_count_as_the_same(tmp_path):
    image = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        image.save(tmp_path / folder / "x.png")
    assert pixel_checksum(files([tmp_path / "a/x.png"])) == pixel_checksum(files([tmp_path / "b/x.png"]))
    assert pixel_checksum(files([tmp_path / "a/x.png"])) != pixel_checksum(files([tmp_path / "none.png"]))


def test_arrays_and_drawn_images():
    images = np.zeros((3, 8, 8), np.uint8)
    split = ArraySplit("test", images, np.zeros((3, 1), np.float32), ("0", "1", "2"), (None,) * 3)
    before = pixel_checksum(split)
    images[2, 7, 7] = 1
    assert pixel_checksum(split) != before
    assert pixel_checksum(phantom_source(train=1, val=1, test=1, size=64).test) is None


def test_the_error_says_that_pixels_differ(tmp_path):
    path = tmp_path / "x.png"
    Image.new("L", (8, 8), 1).save(path)
    write_fingerprint(tmp_path, [("test", files([path]))])
    Image.new("L", (8, 8), 2).save(path)
    with pytest.raises(ValueError, match="the pixels of test differ"):
        check_unchanged(tmp_path, [("test", files([path]))], data="set.csv")
    old = read_json(tmp_path / "data.json")
    del old["test"]["pixels"]
    write_json(tmp_path / "data.json", old)
    check_unchanged(tmp_path, [("test", files([path]))], data="set.csv")


def test_images_in_tars(tmp_path):
    import io
    import tarfile

    def shard(value):
        with tarfile.open(tmp_path / "shard.tar", "w") as tar:
            for key, pixel in (("a", 1), ("b", value)):
                image = io.BytesIO()
                Image.new("L", (8, 8), pixel).save(image, "PNG")
                for ending, data in (("png", image.getvalue()), ("txt", b"a note")):
                    entry = tarfile.TarInfo(f"{key}.{ending}")
                    entry.size = len(data)
                    tar.addfile(entry, io.BytesIO(data))
        return TarSplit(str(tmp_path / "shard.tar"))

    assert pixel_checksum(shard(2)) == pixel_checksum(shard(2))
    assert pixel_checksum(shard(2)) != pixel_checksum(shard(3))


def test_many_files_take_little_time(tmp_path):
    data = np.random.default_rng(0).bytes(10_000)
    paths = [tmp_path / f"{i}.jpg" for i in range(2000)]
    for path in paths:
        path.write_bytes(data)
    started = time.monotonic()
    assert pixel_checksum(files(paths)) is not None
    assert time.monotonic() - started < 6  # 100,000 files in 5 minutes at the very most
