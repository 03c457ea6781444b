import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from recipes.data.evaluation.labelled_images import read_hdf5, read_slice, read_with_masks


def save(path, array):
    np.save(path, array)
    return str(path)


@given(st.integers(1, 9), st.floats(0, 1))
def test_a_slice_by_its_place(tmp_path_factory, count, position):
    path = tmp_path_factory.mktemp("volume") / "0000.npy"
    np.save(path, np.arange(count, dtype=np.uint8)[:, None, None] * np.ones((1, 2, 3), np.uint8))
    image, boxes = read_slice(str(path), position)
    assert boxes == ()
    assert image.shape == (2, 3)
    assert abs(int(image[0, 0]) - position * count) <= 1


def test_the_middle_slice(tmp_path):
    volume = np.arange(5, dtype=np.uint8)[:, None, None] * np.ones((1, 2, 2), np.uint8)
    assert read_slice(save(tmp_path / "5.npy", volume), 0.5)[0][0, 0] == 2
    assert read_slice(save(tmp_path / "4.npy", volume[:4]), 0.5)[0][0, 0] == 2
    assert read_slice(save(tmp_path / "1.npy", volume[:1]), 1.0)[0][0, 0] == 0


def test_other_values_than_bytes_are_stretched_over_the_slice(tmp_path):
    volume = np.array([[[0.0, 1000.0]], [[2.0, 4.0]]])
    np.testing.assert_array_equal(read_slice(save(tmp_path / "v.npy", volume), 1)[0], [[0, 255]])


@pytest.mark.parametrize("shape", [(4, 4), (0, 4, 4), (2, 3, 4, 3)])
def test_refuses_arrays_that_are_no_volume(tmp_path, shape):
    path = save(tmp_path / "v.npy", np.zeros(shape, np.uint8))
    with pytest.raises(ValueError, match=r"the volume '.*v\.npy' must have shape \(slices, H, W\)"):
        read_slice(path, 0.5)


@pytest.mark.parametrize("content", [b"no volume at all", b"", None])
def test_refuses_damaged_volumes(tmp_path, content):
    path = tmp_path / "v.npy"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"cannot read the volume '.*v\.npy'"):
        read_slice(str(path), 0.5)


def test_refuses_a_volume_cut_short(tmp_path):
    path = tmp_path / "v.npy"
    np.save(path, np.zeros((4, 64, 64), np.uint8))
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ValueError, match="cannot read the volume"):
        read_slice(str(path), 0.5)


def test_boxes_hold_the_pixels_of_masks(tmp_path, picture):
    image = str(picture(tmp_path / "i.png"))
    mask, empty = np.zeros((6, 8), np.uint8), np.zeros((6, 8), np.uint8)
    mask[1:4, 2:7] = 255
    Image.fromarray(mask).save(tmp_path / "m.png")
    Image.fromarray(empty).save(tmp_path / "e.png")
    _, boxes = read_with_masks(image, ("tumour", (str(tmp_path / "m.png"), str(tmp_path / "e.png"))))
    assert boxes == (("tumour", 2, 1, 7, 4),)


def test_refuses_a_mask_of_another_size(tmp_path, picture):
    image, mask = picture(tmp_path / "i.png"), picture(tmp_path / "m.png", size=(6, 9))
    with pytest.raises(
        ValueError, match=r"the mask '.*m\.png' is \(6, 9\) pixels \(height, width\), its image \(6, 8\)"
    ):
        read_with_masks(str(image), ("tumour", (str(mask),)))


def test_images_of_an_hdf5_file(tmp_path):
    path = str(tmp_path / "images.hdf5")
    with h5py.File(path, "w") as file:
        file["images"] = np.arange(2 * 4 * 4, dtype=np.uint8).reshape(2, 4, 4)
    image, boxes = read_hdf5(path, 1)
    np.testing.assert_array_equal(image, np.arange(16, 32).reshape(4, 4))
    assert boxes == ()
    with pytest.raises(ValueError, match=r"cannot read image 2 of '.*images\.hdf5'"):
        read_hdf5(path, 2)


def test_refuses_what_is_no_hdf5_file(tmp_path):
    (tmp_path / "images.hdf5").write_bytes(b"none")
    with pytest.raises(ValueError, match=r"cannot read image 0 of '.*images\.hdf5'"):
        read_hdf5(str(tmp_path / "images.hdf5"), 0)
