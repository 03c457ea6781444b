"""The test of Figure 3's claim: uniform where there is nothing, sure where there is something."""

from itertools import permutations

import numpy as np
import pytest
from scipy.stats import kstest

from recipes.shared.scores.specialisation import RoutedSplit, expert_specialisation

E, C, K = 8, 8, 2


def route(rng, logits):
    """Shares of the slots of top-2 routing on noisy logits, shape ``(N, E)``."""
    noisy = logits + rng.gumbel(size=logits.shape)
    chosen = np.argsort(-noisy, axis=1)[:, :K]
    usage = np.zeros(logits.shape)
    np.put_along_axis(usage, chosen, 1 / K, axis=1)
    return usage


def patients(rng, studies, per_patient):
    return [f"p{i // per_patient}" for i in rng.permutation(studies)]


def collapsed_split(rng, studies, *, per_patient=1):
    """Two experts receive most studies, whatever the labels, which a patient's studies share for the most part."""
    logits = np.where(np.arange(E) < 2, 3.6, 0.0)
    groups = patients(rng, studies, per_patient)
    codes = np.array([int(name[1:]) for name in groups])
    labels = (rng.random((codes.max() + 1, C)) < 0.2)[codes]
    # A patient's studies are routed alike too: only patients are independent.
    taste = rng.normal(size=(codes.max() + 1, E))[codes]
    flips = rng.random(labels.shape) < 0.05
    return RoutedSplit(route(rng, logits + taste), (labels ^ flips).astype(float), groups)


def planted_split(rng, studies, owner, strength):
    labels = rng.random((studies, C)) < 0.15
    logits = np.zeros((studies, E))
    for c, expert in enumerate(owner):
        logits[:, expert] += strength * labels[:, c]
    return RoutedSplit(route(rng, logits), labels.astype(float), [str(i) for i in range(studies)])


@pytest.mark.parametrize("per_patient", [1, 3])
def test_p_is_uniform_for_a_collapsed_router(per_patient):
    rng = np.random.default_rng(per_patient)
    figures = []
    for seed in range(200):
        val, test = (collapsed_split(rng, n, per_patient=per_patient) for n in (90, 120))
        one = expert_specialisation(val, test, range(C), top_k=K, permutations=99, seed=seed)
        figures.append((one["diagonal"]["p_mean_share"], one["diagonal"]["p_mean_excess"], one["diseases"][0]["p"]))
    p = np.array(figures)
    assert ((p <= 0.05).mean(axis=0) < 0.09).all()
    assert ((p[:, :2] <= 0.05).mean(axis=0) > 0.01).all()
    # p-values are multiples of 1/100, so the distance to the uniform distribution is up to 0.01 larger.
    for column in p[:, :2].T:
        assert kstest(column, "uniform").statistic < 0.115
    # A single disease's share is coarse: its ties make p larger than uniform, never smaller.
    assert kstest(p[:, 2], "uniform", alternative="greater").statistic < 0.1


def test_a_collapsed_router_has_large_shares_that_show_nothing():
    rng = np.random.default_rng(0)
    val, test = collapsed_split(rng, 400), collapsed_split(rng, 600)
    result = expert_specialisation(val, test, [f"d{c}" for c in range(C)], top_k=K, permutations=200)
    largest = [max(one["shares"]) for one in result["diseases"]]
    assert min(largest) > 0.35
    assert max(largest) < 0.5
    assert result["highest_share"] == 0.5
    assert result["uniform_share"] == 0.125
    assert result["diagonal"]["p_mean_share"] > 0.05
    assert min(one["p_holm"] for one in result["diseases"]) > 0.05


def test_a_planted_assignment_is_recognised():
    rng = np.random.default_rng(0)
    owner = rng.permutation(E)
    val, test = planted_split(rng, 300, owner, 4.0), planted_split(rng, 400, owner, 4.0)
    result = expert_specialisation(val, test, [f"d{c}" for c in range(C)], top_k=K, permutations=400)
    assert [one["expert"] for one in result["diseases"]] == owner.tolist()
    assert result["diagonal"]["p_mean_share"] == result["diagonal"]["p_mean_excess"] == 1 / 401
    assert result["diagonal"]["above_claim"] == C
    assert result["diagonal"]["p_above_claim"] == 1 / 401
    assert result["diagonal"]["null_mean_share_95"] < 0.25
    assert all(one["lift"] > 2 and one["p_holm"] < 0.05 for one in result["diseases"])


@pytest.mark.parametrize(("experts", "diseases"), [(3, 5), (5, 3)])
def test_the_assignment_is_the_best_of_all_where_experts_and_diseases_differ_in_number(experts, diseases):
    rng = np.random.default_rng(experts)
    labels = (rng.random((60, diseases)) < 0.4).astype(float)
    usage = rng.dirichlet(np.ones(experts), 60)
    split = RoutedSplit(usage, labels, [str(i) for i in range(60)])
    result = expert_specialisation(split, split, range(diseases), top_k=1, permutations=1)
    shares = np.array([one["shares"] for one in result["diseases"]])
    if experts >= diseases:
        best = max(shares[range(diseases), list(p)].sum() for p in permutations(range(experts), diseases))
    else:
        best = max(shares[list(p), range(experts)].sum() for p in permutations(range(diseases), experts))
    assigned = [one for one in result["diseases"] if one["expert"] is not None]
    assert len(assigned) == result["diagonal"]["assigned"] == min(experts, diseases)
    assert sum(one["share"] for one in assigned) == pytest.approx(best)
    assert len({one["expert"] for one in assigned}) == len(assigned)
    assert all(one["p"] is None for one in result["diseases"] if one["expert"] is None)


def test_the_assignment_comes_from_validation_and_the_shares_from_test():
    labels = np.eye(2)[[0, 1] * 4]
    val = RoutedSplit(labels, labels, [str(i) for i in range(8)])
    test = RoutedSplit(1 - labels, labels, [str(i) for i in range(8)])
    result = expert_specialisation(val, test, ["a", "b"], top_k=1, permutations=20)
    assert [one["expert"] for one in result["diseases"]] == [0, 1]
    assert [one["share"] for one in result["diseases"]] == [0.0, 0.0]
    assert [one["lift"] for one in result["diseases"]] == [0.0, 0.0]
    assert result["diagonal"]["mean_excess"] == -0.5


def test_a_disease_without_positives_in_both_splits_has_no_expert():
    labels = np.array([[1, 0, np.nan], [0, 1, 1], [1, 0, 0], [0, 0, np.nan]])
    usage = np.full((4, 2), 0.5)
    val = RoutedSplit(usage, labels, list("abcd"))
    test = RoutedSplit(usage, np.where(labels == 1, np.array([1, 1, np.nan]), labels), list("abcd"))
    result = expert_specialisation(val, test, ["x", "y", "z"], top_k=2, permutations=5)
    assert result["diseases"][2]["expert"] is None
    assert result["diseases"][2]["shares"] is None
    assert (result["diseases"][2]["positives_val"], result["diseases"][2]["positives_test"]) == (1, 0)
    empty = expert_specialisation(val._replace(labels=0 * labels), test, ["x", "y", "z"], top_k=2, permutations=5)
    assert empty["diagonal"]["assigned"] == 0
    assert empty["diagonal"]["p_mean_share"] is None


def test_patients_exchange_whole_label_vectors_with_those_of_as_many_studies():
    from recipes.shared.scores.specialisation import _Exchange

    groups = ["a", "b", "a", "c", "b", "d", "e"]  # a and b have two studies, c, d and e one
    exchange = _Exchange(groups)
    assert exchange.exchangeable == 5
    assert _Exchange(["a", "a", "b"]).exchangeable == 0
    rng, orders = np.random.default_rng(0), set()
    for _ in range(200):
        source = exchange(rng)
        assert sorted(source) == list(range(7))
        assert {groups[i] for i in source[[0, 2]]} in ({"a"}, {"b"})
        assert source[0] < source[2]  # the order within a patient stays
        orders.add(tuple(source))
    assert len(orders) == 2 * 6


def test_what_is_refused():
    good = RoutedSplit(np.full((4, 2), 0.5), np.zeros((4, 1)), list("abcd"))
    for bad, message in (
        (good._replace(usage=np.full((4, 3), 1 / 3)), r"test must have usage of shape .* got \(4, 3\) and \(4, 1\)"),
        (good._replace(labels=np.zeros((4, 2))), r"labels of shape \(studies, 1\), got \(4, 2\) and \(4, 2\)"),
        (good._replace(groups=list("abc")), "test must have the patient of each of 4 studies, got 3"),
        (good._replace(usage=np.full((4, 2), 0.4)), "the rows of usage of test must be shares that sum to 1"),
    ):
        with pytest.raises(ValueError, match=message):
            expert_specialisation(good, bad, ["x"], top_k=1)
    with pytest.raises(ValueError, match="top_k must be from 1 to the number of experts, 2, got 3"):
        expert_specialisation(good, good, ["x"], top_k=3)
    with pytest.raises(ValueError, match=r"permutations \(--permutations\) must be at least 1, got 0"):
        expert_specialisation(good, good, ["x"], top_k=1, permutations=0)
