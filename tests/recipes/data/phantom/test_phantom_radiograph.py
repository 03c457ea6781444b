"""Drawing: boxes hold what a pattern changed, scales are as tabled, sizes and fields are right."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recipes.data.phantom.chest.findings import PATTERNS
from recipes.data.phantom.chest.lesions import DRAWERS
from recipes.data.phantom.chest.radiograph import Radiograph, draw_radiograph
from recipes.data.phantom.fields import enclosing_box, ridge, smooth_noise, soft_step

P = len(PATTERNS)


def draw(visible: np.ndarray, seed: int, size: int = 96) -> Radiograph:
    patient, acquisition, *lesions = [np.random.default_rng([seed, stream]) for stream in range(2 + P)]
    return draw_radiograph(visible, patient=patient, acquisition=acquisition, lesions=lesions, size=size)


def without(visible: np.ndarray, pattern: int) -> np.ndarray:
    return np.where(np.arange(P) == pattern, False, visible)


def changed(visible: np.ndarray, pattern: int, seed: int, size: int) -> np.ndarray:
    """Absolute difference that taking one pattern away makes, shape ``(size, size)``."""
    present, absent = draw(visible, seed, size), draw(without(visible, pattern), seed, size)
    return np.abs(present.image.astype(float) - absent.image.astype(float))


@pytest.mark.parametrize("pattern", range(P), ids=[pattern.name for pattern in PATTERNS])
@settings(deadline=None, max_examples=20)
@given(
    seed=st.integers(0, 2**32),
    others=st.lists(st.booleans(), min_size=P, max_size=P),
    size=st.sampled_from((64, 96, 131)),
)
def test_boxes_hold_the_change_and_stay_tight(pattern: int, seed: int, others: list[bool], size: int) -> None:
    alone = np.arange(P) == pattern
    together = np.array(others) | alone
    boxes = draw(alone, seed, size).boxes[pattern]
    assert boxes == draw(together, seed, size).boxes[pattern]
    change, change_together = changed(alone, pattern, seed, size), changed(together, pattern, seed, size)
    inside = np.zeros((size, size), dtype=bool)
    for x0, y0, x1, y1 in boxes:
        assert 0 <= x0 < x1 <= size
        assert 0 <= y0 < y1 <= size
        box = np.s_[int(y0) : int(y1), int(x0) : int(x1)]
        inside[box] = True
        # Tight: something changed near every side (rounding to uint8 hides the faintest change).
        high, wide = max(2, int(y1 - y0) // 8), max(2, int(x1 - x0) // 8)
        edges = (change[box][:high], change[box][-high:], change[box][:, :wide], change[box][:, -wide:])
        assert all(edge.max() > 0 for edge in edges)
    for energy in (change, change_together):
        assert energy.sum() > 0
        assert energy[inside].sum() >= 0.95 * energy.sum()


@pytest.mark.parametrize("pattern", range(P), ids=[pattern.name for pattern in PATTERNS])
def test_lesions_have_the_scale_of_the_table(pattern: int) -> None:
    visible = np.arange(P) == pattern
    boxes = [box for seed in range(60) for box in draw(visible, seed, 128).boxes[pattern]]
    extents = [max(x1 - x0, y1 - y0) / 128 for x0, y0, x1, y1 in boxes]
    smallest, largest = PATTERNS[pattern].scale
    assert smallest <= min(extents)
    assert max(extents) <= largest


def test_patterns_change_brightness_the_way_they_should() -> None:
    """Pleural air darkens; the others brighten; no pattern leaves a box where it is not drawn."""
    nothing = np.zeros(P, dtype=bool)
    for pattern in range(P):
        visible = np.arange(P) == pattern
        for seed in range(20):
            present, absent = draw(visible, seed), draw(nothing, seed)
            change = present.image.astype(float).sum() - absent.image.astype(float).sum()
            assert (change < 0) == (PATTERNS[pattern].name == "pleural air")
            assert absent.boxes == ((),) * P
            assert [bool(boxes) for boxes in present.boxes] == visible.tolist()


def test_images_are_exposed_within_range() -> None:
    for seed in range(20):
        image = draw(np.array([seed % 2 == 0] * P), seed).image
        assert np.mean(image == 255) < 0.02
        assert image[30:60, 20:76].std() > 15
        # Background left of the neck is dark, the middle of the chest is bright.
        assert image[:8, :8].mean() < 40
        assert image[50:60, 44:52].mean() > 110


def test_every_pattern_has_a_drawer_and_a_stream() -> None:
    assert len(DRAWERS) == P
    generators = [np.random.default_rng(stream) for stream in range(P - 1)]
    with pytest.raises(ValueError, match="shorter"):
        draw_radiograph([True] * P, patient=generators[0], acquisition=generators[1], lesions=generators, size=64)


def test_enclosing_box_of_a_block_and_of_nothing() -> None:
    change = np.zeros((10, 12), dtype=np.float32)
    assert enclosing_box(change) is None
    change[3:6, 4:11] = -2.0
    assert enclosing_box(change) == (4.0, 3.0, 11.0, 6.0)


@settings(deadline=None, max_examples=50)
@given(width=st.floats(0.01, 2.0), distance=st.floats(-3.0, 3.0))
def test_soft_step_and_ridge(width: float, distance: float) -> None:
    here = np.array([distance, -distance, 0.0], dtype=np.float32)
    step = soft_step(here, width)
    assert step[0] + step[1] == pytest.approx(1.0, abs=1e-5)
    assert step[2] == pytest.approx(0.5)
    line = ridge(here, width)
    assert line[0] == line[1] <= line[2] == 1.0
    if abs(distance) > width / 2:
        assert line[0] == 0.0


@pytest.mark.parametrize(("size", "cells"), [(64, 3), (96, 20), (131, 27)])
def test_smooth_noise_has_unit_variance_and_its_grain(size: int, cells: int) -> None:
    fields = np.stack([smooth_noise(np.random.default_rng(seed), size, cells) for seed in range(200)])
    assert fields.dtype == np.float32
    assert fields.mean() == pytest.approx(0.0, abs=0.1)
    assert fields.var() == pytest.approx(1.0, abs=0.12)
    neighbours = np.mean(fields[:, :, 1:] * fields[:, :, :-1])
    far = np.mean(fields[:, :, -1] * fields[:, :, 0])
    assert neighbours > 0.8
    assert abs(far) < 0.2
