import json
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recipes.shared.scores.retrieval import chance_recall, hit_ranks, retrieval_scores, unique_texts


def test_equal_texts_are_one_whatever_their_case_and_spaces():
    texts, index = unique_texts(["Clear lungs.", "Mass", "clear  lungs.", "mass\n", "Cyst"])
    assert texts == ["Clear lungs.", "Mass", "Cyst"]
    assert index.tolist() == [0, 1, 0, 1, 2]


def test_recalls_and_ranks_by_hand():
    # Three images, two texts; images 0 and 2 have text 0.
    scores = [[0.9, 0.1], [0.8, 0.3], [0.2, 0.7]]
    result = retrieval_scores(scores, [0, 1, 0], recalls=(1, 2))
    assert result["image_to_text"] == {
        "recall": {"1": pytest.approx(1 / 3), "2": 1.0},
        "median_rank": 2.0,
        "queries": 3,
        "candidates": 2,
        "chance": {"recall": {"1": pytest.approx(0.5), "2": 1.0}, "median_rank": 1.5},
    }
    # Text 0 finds image 0 first; text 1 finds its only image (1) behind image 2.
    back = result["text_to_image"]
    assert back["recall"] == {"1": 0.5, "2": 1.0}
    assert back["median_rank"] == 1.5
    assert back["chance"]["recall"]["1"] == pytest.approx((2 / 3 + 1 / 3) / 2)
    assert back["chance"]["recall"]["2"] == pytest.approx((1 + 2 / 3) / 2)
    assert (back["queries"], back["candidates"]) == (2, 3)
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_scores_that_say_nothing_are_in_the_middle_not_on_top():
    result = retrieval_scores(np.zeros((21, 21)), np.arange(21))
    assert result["image_to_text"]["median_rank"] == 11
    assert result["image_to_text"]["recall"]["10"] == 0
    assert result["image_to_text"]["chance"]["median_rank"] == 11


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 7), st.data())
def test_chance_counts_all_draws(candidates, data):
    hits = data.draw(st.integers(1, candidates))
    k = data.draw(st.integers(1, 8))
    draws = list(combinations(range(candidates), min(k, candidates)))
    expected = np.mean([any(place < hits for place in draw) for draw in draws])
    assert chance_recall(np.array([hits]), candidates, k) == pytest.approx(expected)


def test_random_scores_come_out_at_chance():
    rng = np.random.default_rng(0)
    index = rng.integers(40, size=400)
    index[:40] = np.arange(40)
    result = [retrieval_scores(rng.random((400, 40)), index) for _ in range(5)]
    for way in ("image_to_text", "text_to_image"):
        for k in ("1", "5", "10"):
            measured = np.mean([one[way]["recall"][k] for one in result])
            assert measured == pytest.approx(result[0][way]["chance"]["recall"][k], abs=0.08)
        assert np.mean([one[way]["median_rank"] for one in result]) == pytest.approx(
            result[0][way]["chance"]["median_rank"], rel=0.35
        )


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 1000))
def test_neither_copies_of_a_pair_nor_the_order_change_the_images_ranks(seed):
    rng = np.random.default_rng(seed)
    scores, index = rng.random((6, 4)), np.array([0, 1, 2, 3, 1, 0])
    result = retrieval_scores(scores, index)
    order = rng.permutation(6)
    assert retrieval_scores(scores[order], index[order]) == result
    twice = retrieval_scores(np.concatenate([scores, scores]), np.concatenate([index, index]))
    assert twice["image_to_text"]["recall"] == result["image_to_text"]["recall"]


def test_the_best_hit_counts():
    assert hit_ranks(np.array([[3.0, 2.0, 1.0, 0.0]]), np.array([[False, True, False, True]])).tolist() == [2.0]


@pytest.mark.parametrize(
    ("scores", "index", "options", "message"),
    [
        ([0.1, 0.2], [0, 1], {}, r"scores must have shape \(images, texts\)"),
        ([[0.1, 0.2]], [0, 1], {}, "got"),
        ([[np.nan]], [0], {}, "scores must be numbers, got NaN for 1 pairs"),
        ([[0.1, 0.2], [0.1, 0.3]], [0, 0], {}, "text_index must name each of the 2 texts at least once"),
        ([[0.1]], [0], {"recalls": (0,)}, r"recalls must be 1 or more, got \[0\]"),
    ],
)
def test_refuses(scores, index, options, message):
    with pytest.raises(ValueError, match=message):
        retrieval_scores(scores, index, **options)
