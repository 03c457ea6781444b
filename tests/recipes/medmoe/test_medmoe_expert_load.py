"""The load of MedMoE's experts, read against the modalities of the images."""

import numpy as np
import pytest

from recipes.medmoe.data.batches import UNKNOWN
from recipes.medmoe.inference.expert_load import expert_load

NAMES = ("xray", "ct", "mri", "us")


def load_of(experts, labels, *, num_experts=4, by="image"):
    return expert_load(np.array(experts), np.array(labels), NAMES, num_experts, by)


def test_an_expert_for_each_modality_is_all_there_should_be():
    load = load_of([0] * 30 + [1] * 30, [0] * 30 + [1] * 30)
    assert load["load"] == [0.5, 0.5, 0, 0]
    assert (load["live_experts"], load["live_expected"], load["warning"]) == (2, 2, None)
    assert load["load_entropy"] == pytest.approx(np.log(2))
    assert load["max_violation"] == pytest.approx(1)


def test_any_expert_may_be_the_one_of_a_modality():
    assert load_of([3] * 30 + [2] * 30, [0] * 30 + [1] * 30)["warning"] is None


def test_modalities_that_share_an_expert_are_named():
    labels = [0] * 20 + [1] * 20 + [2] * 20
    load = load_of([2] * 40 + [1] * 20, labels)
    assert load["warning"] == (
        "2 of the experts live, but the images are of 3 modalities: most images of xray, ct by expert 2 are computed "
        "together"
    )
    assert load_of([2] * 60, labels)["warning"].startswith("1 of the experts lives, but the images are of 3 modalities")


def test_a_rare_modality_needs_no_live_expert():
    load = load_of([0] * 99 + [0], [0] * 99 + [1])
    assert (load["live_expected"], load["warning"]) == (1, None)


def test_images_of_unknown_modality_count_in_the_load_alone():
    load = load_of([0] * 20 + [1] * 20 + [3] * 40, [0] * 20 + [1] * 20 + [UNKNOWN] * 40)
    assert load["load"] == [0.25, 0.25, 0, 0.5]
    assert (load["live_experts"], load["live_expected"], load["warning"]) == (3, 2, None)


def test_without_modalities_dead_experts_are_named():
    load = load_of([0] * 50 + [1] * 50, [UNKNOWN] * 100)
    assert load["live_expected"] is None
    assert load["warning"].startswith("2 of 4 experts are dead (2, 3)")


def test_nothing_is_concluded_from_few_images_or_from_labels():
    few = load_of([0] * 4, [0, 1, 2, 3])
    assert (few["live_experts"], few["live_expected"], few["warning"]) == (1, 4, None)
    assert load_of([0] * 60, [0] * 30 + [1] * 30, by="label")["warning"] is None
