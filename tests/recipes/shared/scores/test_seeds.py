import numpy as np
import pytest

from recipes.shared.scores.seeds import aggregate_seeds, t_interval


def run(seed, macro, classes=None, data="phantom", studies=40):
    per_class = {name: {"auroc": value} for name, value in (classes or {"a": macro}).items()}
    return {
        "run": {"seed": seed, "data": data},
        "test": {"macro_auroc": macro, "per_class": per_class, "studies": studies},
    }


def test_three_values_give_the_known_half_width():
    values = [0.80, 0.83, 0.89]
    mean, low, high = t_interval(values)
    half = 4.303 / np.sqrt(3) * np.std(values, ddof=1)
    assert mean == pytest.approx(0.84)
    assert half == pytest.approx(2.484 * np.std(values, ddof=1), rel=1e-3)
    assert (low, high) == pytest.approx((mean - half, mean + half), abs=1e-4)


def test_equal_values_have_no_width_and_more_confidence_is_wider():
    assert t_interval([0.5, 0.5]) == (0.5, 0.5, 0.5)
    assert t_interval([0.4, 0.6], confidence=0.99)[1] < t_interval([0.4, 0.6], confidence=0.9)[1]


@pytest.mark.parametrize(
    ("values", "confidence", "message"),
    [
        ([0.5], 0.95, "values must hold at least two numbers.*got 1. Run more seeds"),
        ([0.5, np.nan], 0.95, "values must be finite"),
        ([0.5, 0.6], 0.0, "confidence must lie strictly between 0 and 1, got 0.0"),
    ],
)
def test_t_interval_refuses(values, confidence, message):
    with pytest.raises(ValueError, match=message):
        t_interval(values, confidence)


def test_seeds_are_summed_up_overall_and_per_class():
    runs = [run(seed, 0.8 + seed / 100, {"a": 0.7, "b": 0.9 + seed / 50, "c": None}) for seed in range(3)]
    result = aggregate_seeds(runs)
    mean, low, high = t_interval([0.80, 0.81, 0.82])
    assert (result["n"], result["seeds"]) == (3, [0, 1, 2])
    assert result["macro_auroc"]["mean"] == pytest.approx(mean)
    assert result["macro_auroc"]["ci95"] == pytest.approx([low, high])
    assert result["macro_auroc"]["values"] == pytest.approx([0.80, 0.81, 0.82])
    assert result["per_class"]["b"]["mean"] == pytest.approx(0.92)
    assert result["per_class"]["c"] == {"mean": None, "ci95": None, "values": [None] * 3, "n": 0}


def test_means_over_sets_of_classes_are_summed_up_where_every_run_has_them():
    runs = [run(seed, 0.8) for seed in range(3)]
    assert aggregate_seeds(runs)["class_sets"] == {}
    for one, value in zip(runs, (0.7, 0.8, None), strict=True):
        one["test"]["class_sets"] = {"competition": {"classes": ["a"], "macro_auroc": value}}
    runs[0]["test"]["class_sets"]["other"] = {"classes": ["a"], "macro_auroc": 0.1}
    sets = aggregate_seeds(runs)["class_sets"]
    assert list(sets) == ["competition"]
    assert sets["competition"]["classes"] == ["a"]
    assert sets["competition"]["macro_auroc"]["mean"] == pytest.approx(0.75)
    assert sets["competition"]["macro_auroc"]["n"] == 2


def test_one_defined_value_has_a_mean_but_no_interval():
    result = aggregate_seeds([run(0, 0.8, {"a": 0.8}), run(1, None, {"a": None})])
    assert result["macro_auroc"] == {"mean": 0.8, "ci95": None, "values": [0.8, None], "n": 1}


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ([], "runs must hold at least one run's metrics"),
        ([run(1, 0.5), run(1, 0.6)], r"runs must differ in their seed, got seeds \[1, 1\]"),
        (
            [run(0, 0.5), run(1, 0.6, data="mimic")],
            "runs must agree in their data, got 'phantom' and 'mimic'",
        ),
        ([run(0, 0.5), run(1, 0.6, {"z": 0.6})], "runs must agree in their classes"),
        ([run(0, 0.5), run(1, 0.6, studies=39)], "runs must agree in their number of test studies"),
    ],
)
def test_aggregate_refuses(runs, message):
    with pytest.raises(ValueError, match=message):
        aggregate_seeds(runs)
