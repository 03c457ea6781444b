"""Expert choice: every expert's best tokens, against a loop; capacity, masks and non-finite tokens."""

import math

import pytest
import torch
from torch import Tensor, nn

from moekit import ExpertChoiceRouter

DIM, EXPERTS = 6, 4


def make_router(capacity_factor: float = 2.0, num_experts: int = EXPERTS) -> ExpertChoiceRouter:
    torch.manual_seed(0)
    router = ExpertChoiceRouter(DIM, num_experts, capacity_factor=capacity_factor, dtype=torch.float64)
    nn.init.normal_(router.gate.layers[0].weight)
    return router


def make_input(tokens: int) -> Tensor:
    return torch.randn(tokens, DIM, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def by_loop(probs: list[list[float]], eligible: list[bool], capacity: int) -> list[list[int]]:
    """For each expert its tokens, best first, ties to the earliest, none that may not be taken."""
    chosen = []
    for e in range(EXPERTS):
        candidates = [t for t in range(len(probs)) if eligible[t]]
        chosen.append(sorted(candidates, key=lambda t, e=e: (-probs[t][e], t))[:capacity])
    return chosen


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("capacity_factor", [0.5, 1.0, 2.0, 4.0])
@pytest.mark.parametrize("tokens", [1, 3, 11, 12])
def test_every_expert_takes_its_best_tokens(tokens: int, capacity_factor: float, masked: bool) -> None:
    router, x = make_router(capacity_factor), make_input(tokens)
    mask = torch.arange(tokens) % 3 != 1 if masked else torch.ones(tokens, dtype=torch.bool)
    routing = router(x, mask if masked else None)
    logits = x @ router.gate.layers[0].weight.T
    probs = torch.softmax(logits, -1)
    real = int(mask.sum())
    capacity = min(math.ceil(capacity_factor * real / EXPERTS), real)
    columns = min(math.ceil(capacity_factor * tokens / EXPERTS), tokens)
    torch.testing.assert_close(routing.probs, probs)
    expected = by_loop(probs.tolist(), mask.tolist(), capacity)
    for e in range(EXPERTS):
        places = len(expected[e])
        assert routing.token_ids[e].tolist()[:places] == expected[e]
        assert routing.kept[e].tolist() == [True] * places + [False] * (columns - places)
        assert routing.gates[e].tolist()[:places] == pytest.approx([probs[t, e].item() for t in expected[e]])
        assert routing.gates[e, places:].eq(0).all()
        assert routing.expert_ids[e].eq(e).all()


def test_ties_go_to_the_earliest_token() -> None:
    routing = ExpertChoiceRouter(DIM, EXPERTS, init_scale=0.0)(torch.randn(8, DIM))
    assert routing.token_ids.tolist() == [[0, 1, 2, 3]] * EXPERTS


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_non_finite_tokens_are_never_taken(value: float) -> None:
    router, x = make_router(4.0), make_input(6)
    x[[1, 4], 0] = value
    routing = router(x)
    assert routing.valid.tolist() == [True, False, True, True, False, True]
    assert routing.kept.sum(-1).tolist() == [4] * EXPERTS
    for e in range(EXPERTS):
        assert set(routing.token_ids[e][routing.kept[e]].tolist()) == {0, 2, 3, 5}
    assert routing.gates.isfinite().all()
    assert routing.probs[[1, 4]].eq(0).all()
    assert routing.token_ids.max() < 6


def test_all_tokens_masked_or_none_given() -> None:
    router = make_router()
    routing = router(make_input(5), torch.zeros(5, dtype=torch.bool))
    assert not routing.kept.any()
    assert routing.gates.eq(0).all()
    empty = router(make_input(0))
    assert empty.token_ids.tolist() == [[], [], [], []]


def test_fewer_tokens_than_experts() -> None:
    routing = make_router(1.0)(make_input(2))
    assert routing.token_ids.shape == (EXPERTS, 1)
    assert routing.kept.all()


def test_gates_carry_a_gradient_to_the_router() -> None:
    router, x = make_router(), make_input(5).requires_grad_()

    def call(x: Tensor, weight: Tensor) -> Tensor:
        return torch.func.functional_call(router, {"gate.layers.0.weight": weight}, (x,)).gates

    assert torch.autograd.gradcheck(call, (x, router.gate.layers[0].weight))
    router(x).gates.square().sum().backward()
    assert router.gate.layers[0].weight.grad.abs().sum() > 0


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="num_experts must be at least 1, got 0"):
        ExpertChoiceRouter(DIM, 0)
    for factor in (0, -1.0, 4.5):
        with pytest.raises(ValueError, match=r"capacity_factor must be in \(0, num_experts=4\], got"):
            ExpertChoiceRouter(DIM, EXPERTS, capacity_factor=factor)
    with pytest.raises(ValueError, match=r"x unless given\) must have a last dimension of 6, got shape \(2, 3\)"):
        make_router()(torch.zeros(2, 3))


@pytest.mark.parametrize("factor", [0.4, 1.0, 4.0])
def test_padding_changes_nothing_for_real_tokens(factor: float) -> None:
    router, x = make_router(factor), make_input(8)
    mask = torch.arange(32) % 4 == 1
    padded = torch.randn(32, DIM, dtype=torch.float64).index_copy(0, mask.nonzero().flatten(), x)
    alone, beside = router(x), router(padded, mask)
    for e in range(EXPERTS):
        taken = beside.token_ids[e][beside.kept[e]]
        assert torch.equal((taken - 1) // 4, alone.token_ids[e][alone.kept[e]])
        torch.testing.assert_close(beside.gates[e][beside.kept[e]], alone.gates[e][alone.kept[e]])


def test_masks_compile_without_reading_how_many_tokens_are_real() -> None:
    router, x = make_router(1.0), make_input(12)
    compiled = torch.compile(router, fullgraph=True, dynamic=True, backend="aot_eager")
    for mask in (torch.arange(12) < 5, torch.arange(12) >= 0):
        mine, theirs = compiled(x, mask), router(x, mask)
        assert torch.equal(mine.kept, theirs.kept)
        assert torch.equal(mine.token_ids, theirs.token_ids)
    meta = ExpertChoiceRouter(DIM, EXPERTS, device="meta")
    routing = meta(torch.empty(12, DIM, device="meta"), torch.ones(12, dtype=torch.bool, device="meta"))
    assert routing.kept.shape == (EXPERTS, 6)  # the meta device has no value to read


def test_a_capacity_factor_set_later_takes_effect() -> None:
    router, x = make_router(1.0), make_input(12)
    router.capacity_factor = 2.0
    assert torch.equal(router(x).token_ids, make_router(2.0)(x).token_ids)
    with pytest.raises(ValueError, match=r"capacity_factor must be in \(0, num_experts=4\], got 5"):
        router.capacity_factor = 5.0
    assert router.capacity_factor == 2.0
    assert router(x).token_ids.shape == (EXPERTS, 6)
    with pytest.raises(AttributeError, match="num_experts=4 of ExpertChoiceRouter is fixed once it is built, got 8"):
        router.num_experts = 8
