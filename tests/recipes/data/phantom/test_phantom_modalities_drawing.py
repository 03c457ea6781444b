"""Drawing four modalities: boxes hold what a finding changed, places and scales are as tabled."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recipes.data.phantom.chest.anatomy import draw_canvas
from recipes.data.phantom.fields import smooth_noise
from recipes.data.phantom.modalities import FINDINGS, MODALITIES, Finding, findings_of
from recipes.data.phantom.modalities.drawing import Ellipse, Picture, Streams, finish, lay, over
from recipes.data.phantom.modalities.findings import Place
from recipes.data.phantom.modalities.pairs import DRAWERS

EACH_FINDING = pytest.mark.parametrize("finding", FINDINGS, ids=[finding.name for finding in FINDINGS])


def draw(modality: str, finding: str | None, place: Place | None, seed: int, size: int = 96) -> Picture:
    patient, acquisition, lesion = (np.random.default_rng([seed, purpose]) for purpose in range(3))
    return DRAWERS[modality](finding, place, Streams(patient, acquisition, lesion), size)


def shown(finding: Finding, seed: int, size: int = 96) -> tuple[Place, tuple[float, float, float, float], np.ndarray]:
    """Place, box and signed change of a finding, against the same study without it."""
    place = finding.places[seed % len(finding.places)]
    present = draw(finding.modality, finding.name, place, seed, size)
    absent = draw(finding.modality, None, None, seed, size)
    assert absent.box is None
    assert present.box is not None
    return place, present.box, present.image.astype(float) - absent.image.astype(float)


@EACH_FINDING
@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**32), size=st.sampled_from((64, 96, 131)))
def test_box_holds_the_change_and_stays_tight(finding: Finding, seed: int, size: int) -> None:
    _, (x0, y0, x1, y1), change = shown(finding, seed, size)
    change = np.abs(change)
    assert 0 <= x0 < x1 <= size
    assert 0 <= y0 < y1 <= size
    inside = change[int(y0) : int(y1), int(x0) : int(x1)]
    assert inside.sum() >= 0.95 * change.sum() > 0
    high, wide = max(2, int(y1 - y0) // 8), max(2, int(x1 - x0) // 8)
    assert all(edge.max() > 0 for edge in (inside[:high], inside[-high:], inside[:, :wide], inside[:, -wide:]))


@EACH_FINDING
def test_findings_have_the_scale_of_the_table(finding: Finding) -> None:
    boxes = [shown(finding, seed, 128)[1] for seed in range(30)]
    extents = [max(x1 - x0, y1 - y0) / 128 for x0, y0, x1, y1 in boxes]
    smallest, largest = finding.scale
    assert smallest <= min(extents)
    assert max(extents) <= largest


@pytest.mark.parametrize("modality", MODALITIES)
def test_findings_of_a_modality_go_from_large_to_small(modality: str) -> None:
    areas = []
    for finding in findings_of(modality):
        boxes = [shown(finding, seed)[1] for seed in range(40)]
        areas.append(np.mean([(x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in boxes]))
    assert areas[0] > areas[1] > 2 * areas[2]


@EACH_FINDING
def test_findings_lie_where_their_place_says(finding: Finding) -> None:
    heights: dict[int, list[float]] = {}
    for seed in range(10 * len(finding.places)):
        place, (x0, y0, x1, y1), _ = shown(finding, seed)
        middle = (x0 + x1) / 2 / 96
        if place.side == 0:
            assert 0.4 < middle < 0.6
        elif place.words != "in the left lobe":
            assert (middle < 0.45) if place.side < 0 else (middle > 0.55)
        heights.setdefault(place.zone, []).append((y0 + y1) / 2)
    # Upper, frontal, anterior and superficial places come before lower, occipital, posterior and deep ones.
    if finding.name == "liver mass":
        assert np.mean(heights[1]) < np.mean(heights[0])
    elif finding.name == "plaque":
        assert np.mean(heights[0]) < np.mean(heights[2]) < np.mean(heights[1])
    else:
        means = [np.mean(heights[zone]) for zone in sorted(heights)]
        assert means == sorted(means)


def test_the_left_lobe_of_the_liver_lies_between_right_lobe_and_stomach() -> None:
    liver = findings_of("ct")[0]
    middles: dict[int, list[float]] = {}
    for seed in range(30):
        place, (x0, _, x1, _), _ = shown(liver, seed)
        middles.setdefault(place.zone, []).append((x0 + x1) / 2 / 96)
    assert np.mean(middles[0]) < np.mean(middles[2]) < 0.5


@EACH_FINDING
def test_findings_change_brightness_the_way_they_should(finding: Finding) -> None:
    """Dark: mass and cysts. Tumors have a dark middle in a bright ring. All others are bright."""
    dark = {"liver mass", "kidney cyst", "simple cyst", "solid mass"}
    for seed in range(12):
        _, (x0, y0, x1, y1), change = shown(finding, seed)
        if finding.name == "brain tumor":
            assert change.max() > 60
            assert change[int((y0 + y1) / 2), int((x0 + x1) / 2)] < 0
        elif finding.name in ("simple cyst", "solid mass"):
            assert change[int(y0 + 0.3 * (y1 - y0)), int((x0 + x1) / 2)] < -10
        else:
            assert (change.sum() < 0) == (finding.name in dark)


def test_pointing_at_the_centre_seldom_hits() -> None:
    hits = []
    for finding in FINDINGS:
        for seed in range(30):
            _, (x0, y0, x1, y1), _ = shown(finding, seed, 64)
            hits.append(x0 <= 32 < x1 and y0 <= 32 < y1)
    assert 0 < np.mean(hits) < 0.2


@pytest.mark.parametrize("modality", MODALITIES)
def test_pictures_differ_in_anatomy_and_exposure_and_use_the_range(modality: str) -> None:
    images = [draw(modality, None, None, seed).image for seed in range(16)]
    assert np.std([image.mean() for image in images]) > 2
    for image in images:
        assert image.dtype == np.uint8
        assert np.mean(image == 255) < 0.05
        assert np.percentile(image, 99) > 130
        assert np.percentile(image, 2) < 60


def test_both_probes_are_drawn() -> None:
    """A curved probe's beams leave the upper corners dark, far inside the linear probe's edge."""
    corners = [draw("ultrasound", None, None, seed).image[7:10, 10:14].max() for seed in range(30)]
    assert min(corners) == 0
    assert max(corners) > 100


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**32),
    centre=st.tuples(st.floats(-0.3, 1.3), st.floats(-0.3, 1.3)),
    halves=st.tuples(st.floats(0.01, 0.3), st.floats(0.01, 0.3)),
    turn=st.floats(-3.0, 3.0),
)
def test_laying_a_shape_equals_blending_its_whole_mask(
    seed: int, centre: tuple[float, float], halves: tuple[float, float], turn: float
) -> None:
    canvas = draw_canvas(np.random.default_rng(seed), 64)
    ellipse = Ellipse(*centre, *halves, turn)
    field = np.full((64, 64), 0.25, dtype=np.float32)
    whole = over(field, ellipse.mask(canvas), 0.75)
    lay(field, canvas, ellipse, 0.75)
    assert np.allclose(field, whole, atol=1e-5)


def test_finish_clips_and_boxes_only_what_is_seen() -> None:
    plain = np.full((10, 10), 0.5, dtype=np.float32)
    plain[:, :5] = 2.0
    altered = plain.copy()
    altered[2:5, 3:8] = 1.5
    picture = finish(plain, altered)
    # Left of column 5 both are white: nothing to see there.
    assert picture.box == (5.0, 2.0, 8.0, 5.0)
    assert np.all(picture.image[2:5, 5:8] == 255)
    assert finish(plain, None).box is None


def test_grain_can_be_wider_than_high() -> None:
    fields = np.stack([smooth_noise(np.random.default_rng(seed), 96, 10, rows=40) for seed in range(50)])
    along, down = np.mean(fields[:, :, 3:] * fields[:, :, :-3]), np.mean(fields[:, 3:] * fields[:, :-3])
    assert fields.var() == pytest.approx(1.0, abs=0.12)
    assert along > 0.8
    assert down < 0.5
