"""The weight decay of a probe: chosen on validation or inside the subset, and the protocol said in words."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recipes.medmoe.probe.evaluation import protocol
from recipes.medmoe.probe.selection import FIXED, MOST_FOLDS, WEIGHT_DECAYS, _folds, choose_inside, choose_on_validation


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 2), min_size=2, max_size=50), st.integers(1, 4), st.integers(0, 9))
def test_folds_keep_groups_together_and_show_every_class_outside_each_fold(truth, per_group, seed):
    labels = np.eye(3)[truth]
    groups = [f"class {c}, {row // per_group}" for row, c in enumerate(truth)]  # each group of one class
    folds = _folds(labels, groups, seed)
    assert all(len({folds[row] for row in range(len(truth)) if groups[row] == group}) == 1 for group in groups)
    number = folds.max() + 1
    assert set(folds.tolist()) == set(range(number))
    assert number <= MOST_FOLDS
    if number > 1:
        for fold in range(number):
            assert set(np.array(truth)[folds != fold]) == set(truth)


def test_folds_are_as_many_as_the_rarest_class_has_groups():
    labels = np.eye(2)[[0] * 8 + [1] * 3]
    assert _folds(labels, [str(row) for row in range(11)], 0).max() + 1 == 3
    assert _folds(labels, ["a"] * 8 + ["b"] * 3, 0).tolist() == [0] * 11


def test_inside_the_subset_the_decay_is_scored_on_studies_left_out():
    rng = np.random.default_rng(0)
    truth = np.arange(60) % 2
    weak = rng.normal(size=(60, 30)) + 0.5 * truth[:, None]  # many weak features
    groups = [str(row) for row in range(60)]
    chosen = choose_inside(weak, np.eye(2)[truth], groups, "binary-class", seed=0)
    assert (chosen.chosen_by, chosen.chosen_on) == ("5 folds", 60)
    assert chosen.weight_decay in WEIGHT_DECAYS
    assert chosen.val_score > 0.8
    assert chosen == choose_inside(weak, np.eye(2)[truth], groups, "binary-class", seed=0)
    noise = choose_inside(rng.normal(size=(60, 30)), np.eye(2)[truth], groups, "binary-class", seed=0)
    assert noise.val_score < 0.75  # fitted on the studies that it is scored on, noise would reach 1


def test_a_subset_of_one_study_per_class_has_the_fixed_decay():
    chosen = choose_inside(np.eye(2), np.eye(2), ["a", "b"], "binary-class", seed=0)
    assert chosen == (FIXED, None, "fixed", 0)


def test_of_equal_decays_the_strongest_is_chosen_on_validation():
    x, y = np.zeros((8, 1)), np.eye(2)[[0, 1] * 4]  # no information: all decays predict one half
    chosen = choose_on_validation(x, y, x[:4], y[:4], "binary-class")
    assert (chosen.weight_decay, chosen.chosen_on) == (10.0, 4)


@pytest.mark.parametrize(
    ("refit", "select", "words"),
    [
        ("train", "val", "fitted on the share of training alone, weight decay chosen on 61 validation studies"),
        ("train", "subset", "fitted on the share of training alone, weight decay chosen by cross-validation inside "),
        ("train+val", "val", "fitted on the share of training and 61 validation studies, weight decay chosen on 61 "),
    ],
)  # fmt: skip
def test_the_protocol_in_words(refit, select, words):
    assert protocol(refit, select, 61).startswith(words)
