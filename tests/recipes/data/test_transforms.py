"""From images to tensors."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recipes.data.images.square import fit_boxes, fit_square, stack_images
from recipes.data.images.transforms import augment, to_tensor
from recipes.data.studies import Box
from recipes.shared.encoders.image import ImageEncoderSpec


@settings(deadline=None, max_examples=30)
@given(height=st.integers(1, 60), width=st.integers(1, 60), size=st.integers(8, 64), colour=st.booleans())
def test_fitting_keeps_the_aspect_and_fills_with_black(height, width, size, colour):
    image = np.full((height, width, 3) if colour else (height, width), 200, np.uint8)
    fitted = fit_square(image, size)
    assert fitted.shape == ((size, size, 3) if colour else (size, size))
    bright = fitted.reshape(size, size, -1)[..., 0] == 200
    rows, columns = bright.any(1).sum(), bright.any(0).sum()
    assert max(rows, columns) == size
    scale = size / max(height, width)
    assert rows == max(1, round(height * scale))
    assert columns == max(1, round(width * scale))


def test_an_image_of_the_right_size_is_left_alone():
    image = np.random.default_rng(0).integers(0, 256, (32, 32), dtype=np.uint8)
    assert fit_square(image, 32) is image


def test_augmentation_depends_on_its_seed_alone():
    image = np.random.default_rng(0).integers(0, 256, (32, 32), dtype=np.uint8)
    one, same, other = (augment(image, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert (one == same).all()
    assert (one != other).any()


def test_augmentation_is_small_and_does_not_flip():
    image = np.zeros((64, 64), np.uint8)
    image[8:24, 8:24] = 255  # top left
    for seed in range(20):
        moved = augment(image, np.random.default_rng(seed)).astype(float)
        assert moved[:32, :32].sum() > 2 * (moved[32:].sum() + moved[:32, 32:].sum())


def test_tensors_are_normalised_and_grey_becomes_three_channels():
    spec = ImageEncoderSpec("any", 2, mean=(0.5, 0.4, 0.3), std=(0.5, 0.25, 0.1))
    grey = to_tensor(np.array([[0, 255], [51, 102]], np.uint8), spec)
    assert grey.shape == (3, 2, 2)
    assert grey[:, 0, 1].tolist() == pytest.approx([1.0, 2.4, 7.0])
    colour = to_tensor(np.arange(12, dtype=np.uint8).reshape(2, 2, 3), spec)
    assert colour[2, 1, 1].item() == pytest.approx((11 / 255 - 0.3) / 0.1)
    assert torch.isfinite(colour).all()


@pytest.mark.parametrize("shape", [(40, 80), (80, 40), (64, 64)])
def test_boxes_move_with_the_image_into_its_square(shape):
    image = np.zeros(shape, np.uint8)
    image[8:24, 12:28] = 255
    (box,) = fit_boxes([Box("mass", 12, 8, 28, 24)], shape, 64)
    rows, columns = np.nonzero(fit_square(image, 64) > 127)
    edges = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    assert box.finding == "mass"
    assert np.abs(np.subtract(edges, box[1:])).max() <= 1


def test_stacked_images_are_all_in_colour_if_one_is():
    grey, colour = np.full((2, 2), 7, np.uint8), np.full((2, 2, 3), 9, np.uint8)
    assert stack_images([grey, grey]).shape == (2, 2, 2)
    assert stack_images([grey, colour]).tolist() == [np.full((2, 2, 3), 7).tolist(), colour.tolist()]
