"""Hash routing: a table from id to experts, drawn once, even in ids or in occurrences."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moekit import HashRouter


def load_of(router: HashRouter, frequencies: torch.Tensor) -> torch.Tensor:
    ids = torch.arange(len(frequencies))
    return torch.zeros(router.num_experts).index_add(0, router(ids).expert_ids[:, 0], frequencies)


@given(
    num_experts=st.integers(1, 9),
    vocab_size=st.integers(1, 60),
    seed=st.integers(0, 1000),
    data=st.data(),
)
@settings(deadline=None, max_examples=50)
def test_every_id_gets_k_different_experts_and_every_expert_as_many_ids(
    num_experts: int, vocab_size: int, seed: int, data
) -> None:
    top_k = data.draw(st.integers(1, num_experts))
    router = HashRouter(num_experts, vocab_size, top_k, seed=seed)
    routing = router(torch.arange(vocab_size))
    for row in routing.expert_ids.tolist():
        assert len(set(row)) == top_k
        assert set(row) <= set(range(num_experts))
    counts = routing.expert_ids[:, 0].bincount(minlength=num_experts)
    assert counts.max() - counts.min() <= 1
    assert routing.gates.eq(1 / top_k).all()
    torch.testing.assert_close(routing.probs.sum(-1), torch.ones(vocab_size))
    assert routing.probs.gather(-1, routing.expert_ids).equal(routing.gates)
    assert routing.logits is None
    assert routing.valid.all()


def test_the_seed_alone_decides_the_table() -> None:
    ids = torch.arange(100)
    first = HashRouter(8, 100, 2, seed=3)(ids).expert_ids
    torch.manual_seed(123)
    assert HashRouter(8, 100, 2, seed=3)(ids).expert_ids.equal(first)
    assert not HashRouter(8, 100, 2, seed=4)(ids).expert_ids.equal(first)


def test_the_random_generator_of_the_caller_is_left_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    HashRouter(8, 100, 2)
    assert torch.rand(3).equal(expected)


def test_the_table_travels_with_the_state() -> None:
    router, other = HashRouter(8, 100, seed=1), HashRouter(8, 100, seed=2)
    other.load_state_dict(router.state_dict(), strict=True)
    assert other(torch.arange(100)).expert_ids.equal(router(torch.arange(100)).expert_ids)


def test_balanced_hash_evens_the_load_of_zipf_distributed_ids_better_than_random_hash() -> None:
    frequencies = 1 / torch.arange(1, 1001).float()
    frequencies = frequencies[torch.randperm(1000, generator=torch.Generator().manual_seed(0))]
    balanced = load_of(HashRouter(4, 1000, frequencies=frequencies), frequencies)
    assert balanced.max() / balanced.min() < 1.01
    for seed in range(5):
        random = load_of(HashRouter(4, 1000, seed=seed), frequencies)
        assert random.max() - random.min() > 10 * (balanced.max() - balanced.min())


def test_balanced_hash_gives_each_id_to_the_least_loaded_expert_in_order_of_frequency() -> None:
    router = HashRouter(2, 4, frequencies=torch.tensor([1.0, 5, 3, 3]))
    assert router(torch.arange(4)).expert_ids.flatten().tolist() == [0, 0, 1, 1]


@given(token=st.integers(-(2**40), 2**40))
@settings(deadline=None, max_examples=50)
def test_ids_outside_the_table_wrap_around(token: int) -> None:
    router = HashRouter(5, 30, 2)
    routing = router(torch.tensor([token, token % 30]))
    assert routing.expert_ids[0].equal(routing.expert_ids[1])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
def test_every_integer_dtype_is_an_id(dtype: torch.dtype) -> None:
    router = HashRouter(5, 30)
    assert router(torch.arange(30, dtype=dtype)).expert_ids.equal(router(torch.arange(30)).expert_ids)


def test_no_ids_and_masks() -> None:
    router = HashRouter(5, 30, 2)
    assert router(torch.arange(0)).gates.tolist() == []
    masked = router(torch.arange(4), torch.tensor([True, False, True, False]))
    assert masked.expert_ids.equal(router(torch.arange(4)).expert_ids)


def test_nothing_is_learned_and_one_graph_compiles() -> None:
    router, ids = HashRouter(5, 30, 2), torch.arange(7)
    assert list(router.parameters()) == []
    compiled = torch.compile(router, fullgraph=True, backend="aot_eager")
    assert compiled(ids).expert_ids.equal(router(ids).expert_ids)


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="top_k must be between 1 and num_experts=4, got 5"):
        HashRouter(4, 10, 5)
    with pytest.raises(ValueError, match="num_experts must be at least 1, got 0"):
        HashRouter(0, 10)
    with pytest.raises(ValueError, match="vocab_size must be at least 1, got 0"):
        HashRouter(4, 0)
    with pytest.raises(ValueError, match=r"frequencies must have shape \(10,\), got \(9,\)"):
        HashRouter(4, 10, frequencies=torch.ones(9))
    with pytest.raises(ValueError, match=r"frequencies must be finite and at least 0, got values from -1.0 to 2.0"):
        HashRouter(4, 2, frequencies=torch.tensor([2.0, -1.0]))
    for value in (torch.nan, torch.inf):
        with pytest.raises(ValueError, match=r"frequencies must be finite and at least 0, got values from .* to"):
            HashRouter(4, 2, frequencies=torch.tensor([1.0, value]))


@pytest.mark.parametrize(
    "x",
    [
        torch.zeros(3),
        torch.zeros(3, dtype=torch.bool),
        torch.zeros(3, dtype=torch.complex64),
        torch.zeros(3, 1, dtype=torch.int64),
    ],
)
def test_inputs_that_are_no_ids_are_refused(x: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"router_input must hold integer token ids, one per token, got torch\.\w+ of"):
        HashRouter(4, 10)(x)


def test_the_table_comes_back_after_building_on_the_meta_device() -> None:
    built = HashRouter(4, 30, 2, seed=5)
    router = HashRouter(4, 30, 2, seed=5, device="meta").to_empty(device="cpu")
    router.reset_parameters()
    assert torch.equal(router.table, built.table)


@pytest.mark.parametrize("default", [torch.bfloat16, torch.float16, torch.float64])
def test_gates_probabilities_and_table_do_not_follow_the_default_dtype(default: torch.dtype) -> None:
    ids = torch.arange(30)
    expected = HashRouter(3, 30, 2, seed=1)
    before = torch.get_default_dtype()
    torch.set_default_dtype(default)
    try:
        router = HashRouter(3, 30, 2, seed=1)
        routing = router(ids)
    finally:
        torch.set_default_dtype(before)
    assert routing.gates.dtype == routing.probs.dtype == torch.float32
    assert torch.equal(router.table, expected.table)
    assert torch.equal(routing.probs, expected(ids).probs)


@pytest.mark.parametrize(("name", "value"), [("num_experts", 5), ("top_k", 1), ("seed", 2), ("input_ndim", 1)])
def test_what_the_table_was_drawn_for_cannot_be_set_later(name: str, value: int) -> None:
    router = HashRouter(3, 30, 2, seed=1)
    with pytest.raises(AttributeError, match=f"{name}=. of HashRouter is fixed once it is built, got {value}: build"):
        setattr(router, name, value)
    assert getattr(router, name) != value
