import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, softmax

from recipes.medmoe.zero_shot.scoring import class_embeddings, score_classes, z_scores
from recipes.shared.scores.metrics import evaluate_predictions

IMAGES = [[1.0, 0.0], [0.0, 2.0]]
PROMPTS = [[[1.0, 0.0], [0.0, 3.0]], [[0.0, 1.0]]]


def random_case(seed, images=7, classes=3, dim=5):
    rng = np.random.default_rng(seed)
    prompts = [rng.normal(size=(rng.integers(1, 4), dim)) for _ in range(classes)]
    return {
        "images": rng.normal(size=(images, dim)),
        "prompts": prompts,
        "absent": [rng.normal(size=(2, dim)) for _ in range(classes)],
        "local": [rng.normal(size=(images, len(one))) for one in prompts],
    }


def test_the_mean_of_unit_prompts_is_brought_back_to_unit_length():
    result = score_classes(IMAGES, PROMPTS, scale=2.0)
    half = np.sqrt(0.5)
    assert result.scores == pytest.approx(np.array([[half, 0.0], [half, 1.0]]))
    assert result.probs == pytest.approx(softmax(2 * result.scores, axis=1))


def test_the_best_prompt_counts_for_max():
    assert score_classes(IMAGES, PROMPTS, scoring="max").scores == pytest.approx(np.array([[1.0, 0.0], [1.0, 1.0]]))


def test_pairs_is_a_softmax_over_the_prompts_for_and_against():
    absent = [[[0.0, 1.0]], [[1.0, 0.0]]]
    result = score_classes(IMAGES, [[[1.0, 0.0]], [[0.0, 1.0]]], scoring="pairs", absent=absent, scale=3.0)
    yes = softmax([3.0, 0.0])[0]
    assert result.probs == pytest.approx(np.array([[yes, 1 - yes], [1 - yes, yes]]))
    assert result.scores is result.probs


def test_gloria_averages_two_z_scores():
    images = [[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]
    local = [[[4.0, 0.0], [1.0, 1.0], [0.0, 1.0]], [[2.0], [2.0], [2.0]]]
    result = score_classes(images, PROMPTS, scoring="gloria", local=local)
    cosines = np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    best = np.array([[4.0, 2.0], [1.0, 2.0], [1.0, 2.0]])
    expected = (cosines - cosines.mean(0)) / cosines.std(0) / 2
    expected[:, 0] += (best[:, 0] - best[:, 0].mean()) / best[:, 0].std() / 2
    assert result.scores == pytest.approx(expected)  # The second class' local scores do not differ and say nothing.
    assert result.probs == pytest.approx(softmax(expected, axis=1))


def test_multi_label_probabilities_are_each_class_own():
    result = score_classes(IMAGES, PROMPTS, task="multi-label", scale=4.0)
    assert result.probs == pytest.approx(expit(4 * result.scores))


def test_columns_without_spread_become_zero():
    values = np.array([[1.0, 3.0, 2.0], [1.0, 5.0, 2.0 + 1e-7]])  # The last differ by rounding alone.
    assert z_scores(values).tolist() == [[0.0, -1.0, 0.0], [0.0, 1.0, 0.0]]


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10_000), st.sampled_from(["mean", "max", "pairs", "gloria"]), st.permutations(range(3)))
def test_permuting_classes_or_images_permutes_scores(seed, scoring, order):
    case = random_case(seed)
    whole = score_classes(**case, scoring=scoring)
    moved = {name: [case[name][c] for c in order] for name in ("prompts", "absent", "local")}
    assert score_classes(case["images"], **moved, scoring=scoring).scores == pytest.approx(whole.scores[:, order])
    rows = np.random.default_rng(seed).permutation(7)
    turned = case | {"images": case["images"][rows], "local": [one[rows] for one in case["local"]]}
    assert score_classes(**turned, scoring=scoring).scores == pytest.approx(whole.scores[rows])


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10_000), st.sampled_from(["mean", "max", "pairs", "gloria"]))
def test_neither_copies_of_the_prompts_nor_the_length_of_vectors_matter(seed, scoring):
    case = random_case(seed)
    whole = score_classes(**case, scoring=scoring)
    twice = {
        "images": 3 * case["images"],
        "prompts": [np.concatenate([one, 2 * one]) for one in case["prompts"]],
        "absent": [np.concatenate([one, 5 * one]) for one in case["absent"]],
        "local": [np.concatenate([one, one], axis=1) for one in case["local"]],
    }
    again = score_classes(**twice, scoring=scoring)
    assert again.scores == pytest.approx(whole.scores)
    assert again.probs == pytest.approx(whole.probs)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10_000), st.sampled_from(["mean", "max", "gloria"]), st.floats(0.1, 50))
def test_the_scale_changes_no_prediction(seed, scoring, scale):
    case = random_case(seed)
    result = score_classes(**case, scoring=scoring, scale=scale)
    assert result.probs.argmax(1).tolist() == result.scores.argmax(1).tolist()
    assert result.probs.sum(1) == pytest.approx(np.ones(7))


def test_one_prompt_per_class_makes_mean_and_max_the_same():
    case = random_case(3)
    single = [one[:1] for one in case["prompts"]]
    assert score_classes(case["images"], single).scores == pytest.approx(
        score_classes(case["images"], single, scoring="max").scores
    )
    unit = class_embeddings([one / np.linalg.norm(one) for one in single])
    assert unit == pytest.approx(np.concatenate([one / np.linalg.norm(one) for one in single]))


@pytest.mark.parametrize("scoring", ["mean", "max", "pairs", "gloria"])
def test_random_features_score_at_chance(scoring):
    case = random_case(0, images=2000, classes=4, dim=16)
    truth = np.eye(4)[np.random.default_rng(1).integers(4, size=2000)]
    measured = score_classes(**case, scoring=scoring)
    groups = [str(row) for row in range(2000)]
    result = evaluate_predictions(measured.probs, truth, groups, "abcd", task="multi-class", bootstrap=0)
    assert result["accuracy"] == pytest.approx(0.25, abs=0.04)
    assert result["macro_auroc"] == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scoring": "median"}, "scoring must be one of combined, mean, max, pairs, gloria, got 'median'"),
        ({"task": "regression"}, "task must be one of"),
        ({"scale": 0.0}, "scale must be a positive number, got 0.0"),
        ({"prompts": []}, "prompts must hold one array per class, got none"),
        ({"prompts": [[[1.0, 0.0, 0.0]]]}, r"prompts\[0\] must have shape \(count, 2\) .* got \(1, 3\)"),
        ({"prompts": [[[1.0, 0.0]], np.zeros((0, 2))]}, r"prompts\[1\] must have shape"),
        ({"images": [1.0, 0.0]}, r"images must have shape \(count, dim\)"),
        ({"images": [[np.nan, 0.0]]}, "images must be finite"),
        ({"scoring": "pairs"}, r"absent must hold one array per class \(2\) for scoring='pairs', got None"),
        ({"scoring": "pairs", "absent": [[[1.0, 0.0]]]}, r"absent must hold one array per class \(2\).* got 1"),
        ({"scoring": "gloria"}, "local must hold the local scores of every class's prompts"),
        ({"scoring": "gloria", "images": [[1.0, 0.0]], "local": [[[1.0]]]}, "needs at least two, got 1"),
        (
            {"scoring": "gloria", "local": [[[1.0], [2.0]], [[1.0], [2.0]]]},
            r"local must have shapes \[\(2, 2\), \(2, 1\)\]",
        ),
        ({"scoring": "gloria", "local": [[[1.0, np.inf], [2.0, 1.0]], [[1.0], [2.0]]]}, "local must be finite"),
    ],
)
def test_refuses(change, message):
    with pytest.raises(ValueError, match=message):
        score_classes(**({"images": IMAGES, "prompts": PROMPTS} | change))
