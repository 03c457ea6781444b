from base64 import b64decode
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from recipes.shared.report.images import (
    LONGEST_SIDE,
    OVERLAY_SIDE,
    attention_overlay,
    colour_field,
    data_uri,
    findings,
    frame,
)
from recipes.shared.report.pages import SHARED, environment


def decoded(uri):
    return np.asarray(Image.open(BytesIO(b64decode(uri.removeprefix("data:image/png;base64,")))))


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3), (5, 7, 4)])
def test_small_images_survive_unchanged(shape):
    pixels = np.random.default_rng(0).integers(256, size=shape).astype(np.uint8)
    np.testing.assert_array_equal(decoded(data_uri(pixels)), pixels)


def test_large_images_are_scaled_down_in_proportion():
    assert decoded(data_uri(np.zeros((1000, 500), np.uint8))).shape == (LONGEST_SIDE, LONGEST_SIDE // 2)


@pytest.mark.parametrize("pixels", [np.zeros((4, 4)), np.zeros((4, 4, 2), np.uint8), np.zeros(4, np.uint8)])
def test_other_pixels_are_refused(pixels):
    with pytest.raises(ValueError, match="pixels must be uint8 of shape"):
        data_uri(pixels)


def test_attention_is_opaque_where_it_is_high():
    weights = np.full((4, 8), 0.01, np.float32)
    weights[1, 6] = 0.69
    overlay = attention_overlay(weights)
    assert overlay.shape == (OVERLAY_SIDE // 2, OVERLAY_SIDE, 4)
    row, column = np.unravel_index(overlay[..., 3].argmax(), overlay.shape[:2])
    assert (row * 4 // overlay.shape[0], column * 8 // overlay.shape[1]) == (1, 6)
    assert overlay[-1, 0, 3] == 0


def test_even_attention_hides_nothing():
    assert attention_overlay(np.full((3, 3), 1 / 9, np.float32))[..., 3].max() == 0
    assert attention_overlay(np.zeros((3, 3), np.float32))[..., 3].max() == 0


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (np.zeros(4), r"attention must have shape \(h, w\), got \(4,\)"),
        (np.array([[0.5, -0.5]]), "attention must be finite and not negative"),
        (np.array([[0.5, np.nan]]), "attention must be finite and not negative"),
    ],
)
def test_attention_refuses(weights, message):
    with pytest.raises(ValueError, match=message):
        attention_overlay(weights)


def test_boxes_are_drawn_in_the_image_s_own_pixels():
    boxes = [{"finding": "<Mass>", "x0": 2, "y0": 1, "x1": 6, "y1": 4}]
    image = frame(np.zeros((10, 20), np.uint8), "a < b", alt='"x"', boxes=boxes)
    made = str(environment(SHARED).get_template("figure.html.j2").module.image_figure(image))
    assert 'viewBox="0 0 20 10"' in made
    assert 'x="2.0" y="1.0" width="4.0" height="3.0"' in made
    assert "&lt;Mass&gt;" in made
    assert "a &lt; b" in made
    assert 'alt="&#34;x&#34;"' in made
    assert made.count("<img") == 1


def test_an_overlay_lies_over_its_image():
    overlay = np.zeros((4, 4, 4), np.uint8)
    image = frame(np.zeros((8, 8), np.uint8), "map", alt="x", overlay=overlay)
    made = str(environment(SHARED).get_template("figure.html.j2").module.image_figure(image))
    assert made.index(image.image) < made.index(data_uri(overlay))
    assert "<svg" not in made


def test_findings_are_named_once():
    assert findings([{"finding": "a"}, {"finding": "a"}]) == "a"
    assert findings([{"finding": "a"}, {"finding": "b"}]) == "a, b"
    assert findings([{"finding": "a"}, {"finding": "b"}, {"finding": "a"}]) == "1 a, 2 b"


def test_fields_are_coloured_cell_by_cell_up_to_a_common_height():
    field = colour_field(np.array([[0.1, 0.5], [0.3, 9.0]]), 0.1, 0.5)
    side = OVERLAY_SIDE // 2
    assert field.shape == (2 * side, 2 * side, 3)
    assert len(np.unique(field[:side, :side].reshape(-1, 3), axis=0)) == 1
    np.testing.assert_array_equal(field[0, -1], field[-1, -1])
    assert field[0, 0].astype(int).sum() < field[-1, 0].astype(int).sum() < field[0, -1].astype(int).sum()


@pytest.mark.parametrize(
    ("values", "high", "message"),
    [
        (np.zeros(3), 1.0, r"values must have shape \(h, w\), got \(3,\)"),
        (np.zeros((2, 2)), 0.0, "high must be above low, got 0.0 and 0.0"),
    ],
)
def test_fields_refuse(values, high, message):
    with pytest.raises(ValueError, match=message):
        colour_field(values, 0.0, high)
