"""How plan_dispatch and combine choose between sorting and kernels."""

import pytest
import torch

from moekit import combine, plan_dispatch, plan_expert_choice

IDS = torch.tensor([[0, 1], [2, 0]])


def test_auto_and_torch_agree_on_cpu():
    for options in ({}, {"kept": torch.tensor([[True], [False]]), "capacity": 1}):
        auto, sort = (plan_dispatch(IDS, 3, impl=impl, **options) for impl in ("auto", "torch"))
        assert all(torch.equal(a, b) for a, b in zip(auto[:6], sort[:6], strict=True))
    rows, gates = torch.randn(4, 3), torch.rand(2, 2)
    for plan in (plan_dispatch(IDS, 3), plan_expert_choice(torch.tensor([[0, 1], [1, 2]]), 3)):
        assert torch.equal(combine(rows, plan, gates), combine(rows, plan, gates, impl="torch"))


@pytest.mark.parametrize(
    ("impl", "message"),
    [
        ("cuda", "impl must be one of 'auto', 'reference', 'torch', 'triton', got 'cuda'"),
        ("triton", "impl=\"triton\" needs tensors on a GPU, got device 'cpu'"),
    ],
)
def test_an_impl_that_cannot_run_is_named(impl, message):
    plan = plan_dispatch(IDS, 3)
    choice = plan_expert_choice(torch.tensor([[0, 1], [1, 2]]), 3)
    with pytest.raises(ValueError, match=message):
        plan_dispatch(IDS, 3, impl=impl)
    for either in (plan, choice):
        with pytest.raises(ValueError, match=message):
            combine(torch.ones(4, 1), either, torch.ones(2, 2), impl=impl)


def test_float64_has_no_kernel():
    with pytest.raises(ValueError, match=r'impl="triton" takes rows of bfloat16.*got torch.float64'):
        combine(torch.ones(4, 1).double(), plan_dispatch(IDS, 3), torch.ones(2, 2), impl="triton")
