"""What routing on CPU reads on the host in plain eager code: the numbers are those of code that reads nothing."""

import math

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.utils.flop_counter import FlopCounterMode

from moekit_kernels.eager import all_true, can_read
from moekit_kernels.routing import route, routing_sums, sums_plain
from moekit_kernels.routing.finite import finite_logits
from moekit_kernels.routing.selection import top_k_ids
from moekit_kernels.routing.sums_plain import sums_of_all


def _case(num_tokens: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(num_tokens)
    logits = torch.randn(num_tokens, 5, generator=generator, dtype=torch.float64).to(dtype)
    ids = top_k_ids(logits, 2)
    return logits.gather(-1, ids).softmax(-1), ids, logits, logits.softmax(-1)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 3e38])
@pytest.mark.parametrize("num_tokens", [1, 4])
def test_logits_are_checked_alike_with_and_without_reading(num_tokens: int, value: float) -> None:
    logits = torch.zeros(num_tokens, 6)
    logits[0, 2:4] = value  # 3e38 is finite, but the sum is not
    read = finite_logits(logits)
    with FlopCounterMode(display=False):  # no plain eager code: nothing is read
        unread = finite_logits(logits)
    assert read.valid.tolist() == unread.valid.tolist() == [value == 3e38] + [True] * (num_tokens - 1)
    assert torch.equal(read.logits, unread.logits)


def test_finite_logits_are_known_to_be_valid_and_returned_as_they_are() -> None:
    logits = torch.randn(3, 4, requires_grad=True)
    finite = finite_logits(logits)
    assert finite.all_valid
    assert finite.logits is logits
    assert finite.valid.all()
    assert finite_logits(torch.zeros(0, 4)).valid.shape == (0,)


@pytest.mark.parametrize("num_tokens", [1, 3, 40])
def test_rows_with_equal_scores_are_chosen_as_without_reading(num_tokens: int) -> None:
    scores = torch.randint(6, (num_tokens, 9), generator=torch.Generator().manual_seed(num_tokens)).float()
    read = top_k_ids(scores, 4)
    with FlopCounterMode(display=False):
        unread = top_k_ids(scores, 4)
    assert torch.equal(read, unread)
    assert read.is_contiguous()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("num_tokens", [0, 1, 3])
def test_sums_in_python_are_those_of_tensor_operations(num_tokens, dtype, monkeypatch) -> None:
    gates, ids, logits, probs = _case(num_tokens, dtype)
    few = sums_of_all(gates, ids, logits, probs)
    monkeypatch.setattr(sums_plain, "_FEW", -1)
    for a, b in zip(few, sums_of_all(gates, ids, logits, probs), strict=True):
        assert a.dtype == b.dtype == dtype
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("value", [math.nan, -0.25, math.inf])
def test_numbers_that_are_no_probabilities_are_summed_up_alike(value: float, monkeypatch) -> None:
    gates, ids, logits, probs = _case(2)
    probs[1, 2] = value
    few = sums_of_all(gates, ids, logits, probs)
    monkeypatch.setattr(sums_plain, "_FEW", -1)
    torch.testing.assert_close(few, sums_of_all(gates, ids, logits, probs), equal_nan=True)


@pytest.mark.parametrize("num_tokens", [2, 8])
def test_sums_have_gradients_of_every_order(num_tokens: int) -> None:
    gates, ids, logits, _ = _case(num_tokens)
    leaves = gates.requires_grad_(), logits.requires_grad_()

    def sums(gates: Tensor, logits: Tensor) -> tuple[Tensor, ...]:
        return tuple(routing_sums(gates, ids, logits, logits.softmax(-1), None))

    assert gradcheck(sums, leaves)
    assert gradgradcheck(sums, leaves)


def test_each_sum_has_the_gradient_of_sums_that_read_nothing() -> None:
    gates, ids, logits, probs = _case(3)
    probs[0, 4] = 0  # the entropy's derivative is infinite there, and counts as 0
    for place in range(4):
        expected = None
        for counted in (torch.ones(3, dtype=torch.bool), None):
            leaves = [t.detach().requires_grad_() for t in (gates, logits, probs)]
            total = routing_sums(leaves[0], ids, leaves[1], leaves[2], counted)[place]
            got = torch.autograd.grad(total.sum(), leaves, allow_unused=True, materialize_grads=True)
            expected = got if expected is None else expected
            torch.testing.assert_close(got, expected)


def test_sums_without_logits() -> None:
    gates, ids, _, probs = _case(2)
    sums = routing_sums(gates, ids, None, probs.requires_grad_(), None)
    assert sums.logsumexp_sq_sum == 0
    assert torch.autograd.grad(sums.entropy_sum, probs)[0].isfinite().all()


def test_nothing_is_read_where_a_tensor_has_no_values_at_hand() -> None:
    mask = torch.ones(3, dtype=torch.bool)
    assert can_read(mask)
    assert all_true(mask)
    assert not all_true(torch.tensor([True, False]))
    assert not can_read(mask.to("meta"))
    assert not torch.func.vmap(lambda row: torch.tensor(can_read(row)))(mask.unsqueeze(0)).any()
    with FlopCounterMode(display=False):
        assert not all_true(mask)


def test_decisions_under_vmap_are_those_of_single_calls() -> None:
    logits = torch.randn(3, 4, 6)
    batched = torch.func.vmap(lambda x: route(x, 2, with_sums=False)[:2])(logits)
    for index in range(3):
        torch.testing.assert_close(tuple(each[index] for each in batched), route(logits[index], 2)[:2])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_scores_that_are_not_finite_are_ranked_as_without_reading(value: float) -> None:
    scores = torch.tensor([[0.5, value, 2.0, 2.0], [1.0, 0.0, -1.0, 3.0]])
    read = top_k_ids(scores, 3)
    with FlopCounterMode(display=False):
        unread = top_k_ids(scores, 3)
    assert torch.equal(read, unread)


def test_sums_of_large_logits_are_exact() -> None:
    logits = torch.tensor([[-2e4, 5e3, 5e3 - 1.0, 0.0, 1.0]] * 16)
    sums = sums_of_all(torch.ones(16, 1), torch.zeros(16, 1, dtype=torch.int64), logits, logits.softmax(-1))
    expected = logits.double().logsumexp(-1).square().sum().float()
    torch.testing.assert_close(sums[2], expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("num_tokens", [1, 16])
@pytest.mark.parametrize(("dtype", "value"), [(torch.float32, 1e20), (torch.float64, 1e200)])
def test_sums_beyond_the_largest_number_are_infinite(num_tokens: int, dtype: torch.dtype, value: float) -> None:
    logits = torch.full((num_tokens, 5), value, dtype=dtype)
    gates, ids = torch.ones(num_tokens, 1, dtype=dtype), torch.zeros(num_tokens, 1, dtype=torch.int64)
    assert sums_of_all(gates, ids, logits, logits.softmax(-1))[2] == math.inf
