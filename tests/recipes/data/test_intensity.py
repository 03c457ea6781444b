import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from recipes.data.images.intensity import stretch, stretch_min_max


def test_ends_and_middle():
    np.testing.assert_array_equal(stretch(np.array([-5, 0, 50, 100, 400]), 0, 100), [0, 0, 128, 255, 255])


def test_equal_ends_are_a_step():
    np.testing.assert_array_equal(stretch(np.array([6.9, 7.0, 7.1]), 7, 7), [0, 0, 255])


def test_values_that_are_not_finite():
    values = np.array([np.nan, -np.inf, 1.0, 3.0, np.inf])
    np.testing.assert_array_equal(stretch_min_max(values), [0, 0, 0, 255, 255])


def test_a_constant_image_becomes_black():
    np.testing.assert_array_equal(stretch_min_max(np.full((2, 2), 4000, np.uint16)), np.zeros((2, 2)))


def test_ignored_pixels_are_black_and_do_not_set_the_range():
    values = np.array([-2000, 100, 200])
    np.testing.assert_array_equal(stretch_min_max(values, ignore=values == -2000), [0, 0, 255])


def test_refuses_an_image_without_finite_values():
    with pytest.raises(ValueError, match="no pixel holds a finite value"):
        stretch_min_max(np.full((2, 2), np.nan))


@given(hnp.arrays(np.uint16, st.integers(2, 40), elements=st.integers(0, 65535)), st.integers(1, 30))
@settings(deadline=None, max_examples=60)
def test_keeps_order_and_spans_all_of_eight_bits(values, gain):
    shown = stretch_min_max(values)
    order = np.argsort(values, kind="stable")
    assert (np.diff(shown[order].astype(int)) >= 0).all()
    if values.min() < values.max():
        assert (shown.min(), shown.max()) == (0, 255)
    np.testing.assert_array_equal(stretch_min_max(values.astype(np.float64) * gain - 7), shown)
