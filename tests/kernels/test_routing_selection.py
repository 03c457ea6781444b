"""Selection: the k largest with ties to the lowest id, on both code paths, and within groups."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moekit_kernels.routing import selection
from moekit_kernels.routing.selection import limit_to_groups, top_k_ids

ORDINARY = st.sampled_from([-2.0, -1.0, -0.0, 0.0, 0.5, 1.0, 3.0, -math.inf, math.inf])
ANY = st.one_of(ORDINARY, st.just(math.nan))


def matrices(values: st.SearchStrategy[float], max_experts: int = 20):
    sizes = st.tuples(st.integers(0, 3), st.integers(1, max_experts))
    return sizes.flatmap(
        lambda size: st.tuples(
            st.lists(st.lists(values, min_size=size[1], max_size=size[1]), min_size=size[0], max_size=size[0]),
            st.just(size[1]),
            st.integers(1, size[1]),
        )
    )


def by_python(rows: list[list[float]], k: int) -> list[list[int]]:
    return [sorted(range(len(row)), key=lambda e, row=row: (-row[e], e))[:k] for row in rows]


@given(case=matrices(ORDINARY))
@settings(deadline=None, max_examples=100)
def test_the_k_largest_are_chosen_and_ties_go_to_the_lowest_id(case) -> None:
    rows, num_experts, k = case
    scores = torch.tensor(rows).reshape(len(rows), num_experts)
    assert top_k_ids(scores, k).tolist() == by_python(rows, k)


@given(case=matrices(ORDINARY))
@settings(deadline=None, max_examples=50)
def test_both_code_paths_choose_alike(case) -> None:
    rows, num_experts, k = case
    scores = torch.tensor(rows).reshape(len(rows), num_experts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selection, "_PASSES", num_experts)
        by_passes = top_k_ids(scores, k)
        patch.setattr(selection, "_PASSES", 0)
        by_sort = top_k_ids(scores, k)
    assert by_passes.tolist() == by_sort.tolist()


@pytest.mark.parametrize("k", [16, 17, 40])
def test_many_experts_per_token(k: int) -> None:
    scores = torch.randint(5, (8, 40), generator=torch.Generator().manual_seed(0)).float()
    assert top_k_ids(scores, k).tolist() == by_python(scores.tolist(), k)


@given(case=matrices(ANY))
@settings(deadline=None, max_examples=100)
def test_ids_are_distinct_and_in_range_whatever_the_scores(case) -> None:
    rows, num_experts, k = case
    ids = top_k_ids(torch.tensor(rows).reshape(len(rows), num_experts), k)
    for row in ids.tolist():
        assert len(set(row)) == k
        assert set(row) <= set(range(num_experts))


def test_selection_has_no_gradient_and_leaves_its_input_alone() -> None:
    scores = torch.randn(4, 6, requires_grad=True)
    before = scores.detach().clone()
    assert not top_k_ids(scores, 3).requires_grad
    assert not limit_to_groups(scores, 3, 1).requires_grad
    torch.testing.assert_close(scores.detach(), before, rtol=0, atol=0)


@pytest.mark.parametrize(("group_score", "terms"), [("top2_sum", 2), ("max", 1)])
@pytest.mark.parametrize(("num_groups", "topk_groups"), [(1, 1), (2, 1), (4, 2), (4, 4), (12, 3)])
def test_groups_are_ranked_by_their_largest_scores(num_groups: int, topk_groups: int, group_score, terms) -> None:
    scores = torch.randn(20, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    kept = limit_to_groups(scores, num_groups, topk_groups, group_score)
    size = 12 // num_groups
    for row, got in zip(scores.tolist(), kept.tolist(), strict=True):
        groups = [row[start : start + size] for start in range(0, 12, size)]
        ranks = sorted(range(num_groups), key=lambda g, groups=groups: -sum(sorted(groups[g])[-terms:]))
        expected = [v if e // size in ranks[:topk_groups] else -math.inf for e, v in enumerate(row)]
        assert got == expected


def test_groups_of_equal_score_are_kept_from_the_lowest() -> None:
    kept = limit_to_groups(torch.zeros(1, 6), 3, 2)
    assert kept.tolist() == [[0, 0, 0, 0, -math.inf, -math.inf]]
