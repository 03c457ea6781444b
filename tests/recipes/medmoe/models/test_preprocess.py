"""From images to what a released model reads: against torchvision, and boxes that move with their image."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Normalize, Resize, ToTensor

from recipes.data.studies import Box
from recipes.medmoe.models.preprocess import Preprocess
from tests.recipes.medmoe.models.saved import picture

SIDES = st.integers(9, 90)


@given(SIDES, SIDES, st.sampled_from(["bicubic", "bilinear"]))
@settings(max_examples=30, deadline=None)
def test_a_crop_is_that_of_torchvision(height, width, interpolation):
    image = picture(height, width)
    mode = {"bicubic": InterpolationMode.BICUBIC, "bilinear": InterpolationMode.BILINEAR}[interpolation]
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    expected = Compose([Resize(28, mode), CenterCrop(24), ToTensor(), Normalize(mean, std)])(Image.fromarray(image))
    preprocess = Preprocess(24, mean, std, "crop", 28, interpolation)
    np.testing.assert_allclose(preprocess.tensor(preprocess.fit(image)), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "preprocess",
    [
        Preprocess(32, how="crop"),
        Preprocess(32, how="crop", resize=40),
        Preprocess(32, how="letterbox"),
        Preprocess(32, how="letterbox", resize=40),
        Preprocess(32, how="corner"),
        Preprocess(32, how="squash"),
        Preprocess(32, how="pad-then-resize"),
    ],
    ids=lambda preprocess: f"{preprocess.how}-{preprocess.resize}",
)
@given(SIDES, SIDES, st.data())
@settings(max_examples=25, deadline=None)
def test_a_bright_box_is_where_its_box_says(preprocess, height, width, data):
    """The sum of a box's pixels is the sum inside its moved box, but for the rims that the filter smears."""
    x0, y0 = data.draw(st.integers(0, width - 4)), data.draw(st.integers(0, height - 4))
    x1, y1 = data.draw(st.integers(x0 + 4, width)), data.draw(st.integers(y0 + 4, height))
    image = np.zeros((height, width), np.uint8)
    image[y0:y1, x0:x1] = 255
    square = preprocess.fit(image)
    assert square.shape == (32, 32)
    (box,) = preprocess.boxes((Box("finding", x0, y0, x1, y1),), image.shape)
    inside = np.zeros((32, 32), bool)
    pad = 2 + 2 * max(preprocess.placed(height, width).scale)
    lines = np.arange(32) + 0.5
    rows, columns = (lines > box.y0 - pad) & (lines < box.y1 + pad), (lines > box.x0 - pad) & (lines < box.x1 + pad)
    inside[np.ix_(rows, columns)] = True
    assert square[~inside].max(initial=0) <= 8
    rows, columns = (lines > box.y0 + pad) & (lines < box.y1 - pad), (lines > box.x0 + pad) & (lines < box.x1 - pad)
    assert square[np.ix_(rows, columns)].min(initial=255) >= 247


def test_where_black_is_added():
    image = np.full((10, 20), 200, np.uint8)
    assert Preprocess(20, how="letterbox").fit(image)[:5].max() == 0
    assert Preprocess(20, how="letterbox").fit(image)[15:].max() == 0
    corner = Preprocess(20, how="corner").fit(image)
    assert corner[:10].min() == 200
    assert corner[10:].max() == 0
    small = Preprocess(40, how="pad-then-resize").fit(image)  # smaller than the square: not enlarged
    assert (small == 200).sum() == 200
    grey = Preprocess(20, grey=True).fit(np.repeat(image[..., None], 3, -1))
    assert grey.shape == (20, 20)
