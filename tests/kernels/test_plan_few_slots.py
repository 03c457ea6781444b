"""The plan of few slots, counted in Python: same bits as the plan by tensor operations, and safe to write into."""

import pytest
import torch
from hypothesis import given

from moekit import SparseMoE
from moekit_kernels.plan import plan_dispatch, plan_dispatch_reference
from moekit_kernels.plan.few_slots import few_slots, plan_few_slots
from tests.strategies import few, routed


@few
@given(routed())
def test_same_bits_as_by_tensor_operations(case):
    actual = plan_few_slots(case.expert_ids, case.num_experts)
    expected = plan_dispatch_reference(case.expert_ids, case.num_experts)
    assert actual is not None
    for a, b in zip(actual[:6], expected[:6], strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)
    assert actual[6:] == expected[6:]


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8])
def test_any_integers(dtype):
    ids = torch.tensor([[3, 1], [0, 3]])
    actual, expected = plan_few_slots(ids.to(dtype), 4), plan_few_slots(ids, 4)
    assert all(torch.equal(a, b) for a, b in zip(actual[:6], expected[:6], strict=True))


def test_it_is_taken_for_few_slots_and_few_experts_in_plain_eager_code():
    one_token = torch.tensor([[1, 0]])
    assert few_slots(one_token, 8)
    assert not few_slots(one_token, 1000)
    assert not few_slots(torch.zeros(100, 2, dtype=torch.int64), 8)
    assert not few_slots(one_token.to("meta"), 8)
    assert torch.func.vmap(lambda ids: ids + int(few_slots(ids, 8)))(one_token.unsqueeze(0)).tolist() == [[[1, 0]]]


def test_ids_out_of_range_are_left_to_the_check_that_names_them():
    assert plan_few_slots(torch.tensor([[3]]), 3) is None
    assert plan_few_slots(torch.tensor([[-1]]), 3) is None
    with pytest.raises(ValueError, match=r"expert_ids must be in \[0, 3\), the experts, got 3"):
        plan_dispatch(torch.tensor([[3]]), 3)


def test_an_explicit_implementation_travels_with_the_plan():
    assert plan_dispatch(torch.tensor([[0]]), 2, impl="torch").impl == "torch"


def test_statistics_may_be_changed_in_place_before_the_backward_pass():
    moe = SparseMoE.ffn(4, 6, num_experts=3, top_k=2)
    x = torch.randn(2, 4, requires_grad=True)
    output, stats = moe(x)
    expected = torch.autograd.grad(output.sum(), x, retain_graph=True)[0]
    stats.tokens_per_expert.add_(100)
    stats.dropped_per_expert.add_(100)
    torch.testing.assert_close(torch.autograd.grad(output.sum(), x)[0], expected, rtol=0, atol=0)
