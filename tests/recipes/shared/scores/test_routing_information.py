import math

import numpy as np
import pytest

from recipes.shared.scores.routing_information import routing_information


def test_an_expert_for_each_class_tells_the_class():
    labels = np.eye(2)[np.arange(40) % 2]
    result = routing_information(labels, labels, [str(i) for i in range(40)])
    assert result["nats"] == pytest.approx(math.log(2))
    assert result["null_95"] < 0.2
    assert result["p"] == pytest.approx(1 / 201)


def test_one_expert_for_all_tells_nothing():
    usage, labels = np.tile([0.5, 0.5, 0.0], (30, 1)), np.eye(3)[np.arange(30) % 3]
    result = routing_information(usage, labels, ["a"] * 10 + ["b"] * 20)
    assert result["nats"] == pytest.approx(0)
    assert result["p"] == 1


def test_patients_stay_together_in_the_null():
    """Two patients whose studies all look alike: permuting studies would find what permuting patients does not."""
    labels = np.repeat(np.eye(2), 30, axis=0)
    together = routing_information(labels, labels, ["one"] * 30 + ["two"] * 30)
    apart = routing_information(labels, labels, [str(i) for i in range(60)])
    assert together["p"] == 1
    assert apart["p"] < 0.01


def test_chance_is_not_reported_too_often():
    rng = np.random.default_rng(1)
    reported = [
        routing_information(
            np.eye(8)[rng.integers(8, size=60)], np.eye(2)[rng.integers(2, size=60)], list(map(str, range(60))), seed=k
        )["p"]
        <= 0.05
        for k in range(60)
    ]
    assert sum(reported) <= 8  # 3 expected


def test_lengths_that_differ_are_refused():
    with pytest.raises(ValueError, match="of the same studies, at least one, got 2, 2 and 1"):
        routing_information(np.eye(2), np.eye(2), ["a"])
