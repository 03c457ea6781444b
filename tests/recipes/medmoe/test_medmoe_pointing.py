import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from recipes.data.studies import Box
from recipes.medmoe.explain.pointing import Pointing, best_points, point, summarise

NODULE = Box("nodule", 10, 20, 30, 40)


def peak(row, column, shape=(4, 4)):
    values = np.zeros(shape)
    values[row, column] = 1
    return values


def test_the_centre_of_the_best_cell_counts():
    assert best_points(peak(1, 2), 80) == [(50, 30)]
    assert best_points(peak(0, 1, (2, 4)), 80) == [(30, 20)]
    # cell (1, 0) of a 4 x 4 grid over 80 pixels has its centre at x = 10, y = 30: on the box's left edge
    result = point(peak(1, 0), [NODULE], 80, group="p")
    assert result == Pointing("nodule", "p", hit=1, center=0, random=20 * 20 / 80**2)
    assert point(peak(1, 1), [NODULE], 80, group="p").hit == 0  # x = 30 is the right edge, which is half open
    assert point(peak(0, 0), [NODULE], 80, group="p").hit == 0


def test_any_box_of_the_finding_counts_and_overlaps_count_once():
    boxes = [NODULE, Box("nodule", 20, 20, 50, 60)]
    result = point(peak(2, 1), boxes, 80, group="p")
    assert (result.hit, result.center) == (1, 1)
    assert result.random == pytest.approx((400 + 1200 - 200) / 6400)


def test_cells_that_tie_share_the_hit():
    # cells (1, 0) and (2, 3) tie, one of them is inside
    assert point(peak(1, 0) + peak(2, 3), [NODULE], 80, group="p").hit == 0.5
    even = point(np.full((4, 4), 0.3), [Box("mass", 0, 0, 40, 20)], 80, group="p")
    assert even.hit == even.random == 2 / 16


def test_a_box_between_the_centres_of_the_cells_cannot_be_hit():
    # centres of a 4 x 4 grid over 80 pixels stand at 10, 30, 50 and 70
    small = Box("stone", 12, 12, 28, 28)
    assert point(peak(0, 0), [small], 80, group="p").reachable == 0
    assert point(peak(0, 0, (8, 8)), [small], 80, group="p").reachable == 1
    assert point(peak(3, 3), [NODULE], 80, group="p").reachable == 1
    assert summarise([Pointing("a", "p", 0, 0, 0.1, 0), Pointing("a", "q", 1, 0, 0.1, 1)])["reachable"] == 0.5


def test_a_tolerance_widens_the_boxes_for_the_map_and_for_both_baselines():
    plain, wide = (point(peak(0, 0), [NODULE], 80, group="p", tolerance=t) for t in (0, 11))
    assert (plain.hit, plain.center) == (0, 0)
    assert (wide.hit, wide.center) == (1, 1)  # the box is now 42 pixels wide, from -1 to 41 and from 9 to 51
    assert wide.random == pytest.approx(41 * 42 / 6400)


@given(
    npst.arrays(np.float64, (3, 5), elements=st.floats(0, 1)),
    st.tuples(*[st.integers(0, 60)] * 4).map(lambda c: (min(c[:2]), min(c[2:]), max(c[:2]) + 1, max(c[2:]) + 1)),
)
@settings(deadline=None, max_examples=60)
def test_scores_are_shares_and_mirror_with_the_image(word_map, corners):
    # edges at odd quarters of a pixel: no cell's centre and no pixel's lies on one
    x0, y0, x1, y1 = (corner + 0.25 for corner in corners)
    result = point(word_map, [Box("a", x0, y0, x1, y1)], 60, group="p")
    mirrored = point(word_map[:, ::-1], [Box("a", 60 - x1, y0, 60 - x0, y1)], 60, group="p")
    assert 0 <= result.hit <= 1
    assert result.hit == mirrored.hit
    assert result.random == mirrored.random


def test_the_summary_counts_rounds_and_resamples_patients():
    rounds = [
        Pointing("nodule", "p1", 1, 0, 0.1),
        Pointing("nodule", "p1", 1, 0, 0.3),
        Pointing("mass", "p2", 0, 1, 0.5),
        Pointing("mass", "p3", 0.5, 0, 0.1),
    ]
    result = summarise(rounds, bootstrap=400)
    assert result["hit_rate"] == pytest.approx(2.5 / 4)
    assert result["center_baseline"] == 0.25
    assert result["random_baseline"] == pytest.approx(0.25)
    assert (result["rounds"], result["groups"]) == (4, 3)
    low, high = result["hit_rate_ci95"]
    assert 0 <= low < result["hit_rate"] < high <= 1
    assert result["above_center_ci95"][0] < 0 < result["above_center_ci95"][1]
    assert list(result["per_finding"]) == ["mass", "nodule"]
    # all rounds of the nodule are of one patient: resampling cannot change them
    assert result["per_finding"]["nodule"] == {
        "hit_rate": 1.0, "hit_rate_ci95": [1.0, 1.0], "center_baseline": 0.0, "random_baseline": 0.2, "reachable": 1.0,
        "rounds": 2, "groups": 1, "above_center_ci95": [1.0, 1.0], "absent_baseline": None, "above_absent_ci95": None,
        "fixed_baseline": None, "above_fixed_ci95": None,
    }  # fmt: skip
    assert summarise(rounds, bootstrap=400) == result
    assert summarise(rounds, bootstrap=0)["hit_rate_ci95"] is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"boxes": []}, "boxes must be of exactly one finding, got none"),
        ({"boxes": [NODULE, Box("mass", 0, 0, 1, 1)]}, r"exactly one finding, got \['mass', 'nodule'\]"),
        ({"tolerance": -1}, "tolerance must be a number of pixels of at least 0, got -1"),
        ({"word_map": np.zeros(4)}, r"word_map must have shape \(h, w\), got \(4,\)"),
        ({"word_map": np.array([[1, np.nan]])}, "word_map must be finite"),
    ],
)
def test_pointing_refuses(changes, message):
    arguments = {"word_map": peak(0, 0), "boxes": [NODULE], "size": 80, "group": "p"} | changes
    with pytest.raises(ValueError, match=message):
        point(**arguments)


def test_a_summary_refuses():
    with pytest.raises(ValueError, match="rounds must hold at least one round of the game, got none"):
        summarise([])
    with pytest.raises(ValueError, match="bootstrap must be 0"):
        summarise([Pointing("a", "p", 1, 0, 0.1)], bootstrap=-1)
