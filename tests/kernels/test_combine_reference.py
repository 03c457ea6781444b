"""Combine in plain PyTorch, held to loops; which way is taken, and what is refused."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moekit_kernels.combine import (
    combine,
    combine_by_token,
    combine_by_token_reference,
    combine_reference,
    op,
    resolve_impl,
)
from tests.oracles import assert_close
from tests.strategies import few

ROWS, ROW, GATES = torch.ones(4, 3), torch.tensor([[1, 0], [3, 2]]), torch.ones(2, 2)
TOKEN, SLOT = torch.tensor([0, 0, 1, 1]), torch.arange(4)


@few
@given(st.integers(0, 5), st.integers(1, 3), st.sampled_from([(), (3,), (2, 3)]), st.booleans(), st.integers(0, 99))
def test_references_are_loops(num_tokens, top_k, trailing, gated, seed):
    generator = torch.Generator().manual_seed(seed)
    num_rows = num_tokens * top_k
    rows = torch.randn(num_rows, *trailing, generator=generator, dtype=torch.float64)
    gates = torch.randn(num_tokens, top_k, generator=generator, dtype=torch.float64) if gated else None
    row = torch.randperm(num_rows, generator=generator).view(num_tokens, top_k)
    expected = torch.zeros(num_tokens, *trailing, dtype=torch.float64)
    for t in range(num_tokens):
        for k in range(top_k):
            expected[t] += (1.0 if gates is None else gates[t, k]) * rows[row[t, k]]
    slot = row.flatten().argsort()
    assert_close(combine_reference(rows, row, gates), expected)
    assert_close(combine(rows, row, gates), expected)
    assert_close(combine_by_token_reference(rows, slot // top_k, slot, gates, num_tokens), expected)
    assert_close(combine_by_token(rows, slot // top_k, slot, gates, num_tokens), expected)


def test_gradients_of_first_and_second_order():
    rows, gates = (torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((4, 3), (2, 2)))
    for function in (
        lambda r, g: combine(r, ROW, g),
        lambda r, g: combine_by_token(r, TOKEN, SLOT.flip(0), g, 3),
    ):
        assert torch.autograd.gradcheck(function, (rows, gates))
        assert torch.autograd.gradgradcheck(function, (rows, gates))


def test_sums_are_taken_in_the_wider_dtype():
    # In bfloat16, 1 + 2**-8 is 1 again.
    rows = torch.tensor([[1.0], [2**-8], [2**-8]], dtype=torch.bfloat16)
    row, gates = torch.tensor([[0, 1, 2]]), torch.ones(1, 3)
    expected = torch.tensor([[1 + 2**-7]], dtype=torch.bfloat16)
    assert expected.item() != 1
    assert combine(rows, row, gates).equal(expected)
    assert combine_by_token(rows, torch.zeros_like(SLOT[:3]), SLOT[:3], gates, 1).equal(expected)


def _on_gpu(dtype):
    with torch._subclasses.FakeTensorMode():
        return torch.empty(4, 3, dtype=dtype, device="cuda")


def test_auto_goes_by_device_and_dtype(monkeypatch):
    monkeypatch.setattr(op, "triton_is_installed", lambda: True)
    assert resolve_impl("auto", ROWS, GATES) == resolve_impl("torch", ROWS, GATES) == "torch"
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert resolve_impl("auto", _on_gpu(dtype), _on_gpu(torch.float32)) == "triton"
        assert resolve_impl("auto", _on_gpu(dtype), None) == "triton"
    assert resolve_impl("auto", _on_gpu(torch.float64), None) == "torch"
    assert resolve_impl("auto", _on_gpu(torch.float32), _on_gpu(torch.float64)) == "torch"
    monkeypatch.setattr(op, "triton_is_installed", lambda: False)
    assert resolve_impl("auto", _on_gpu(torch.float32), None) == "torch"
    with pytest.raises(ValueError, match='impl="triton" needs the package triton, which is not installed'):
        resolve_impl("triton", ROWS, None)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: combine(ROWS, ROW[:1], GATES), r"row must have shape \(T, K\), one for each of the 4 rows"),
        (lambda: combine(ROWS, ROW, GATES[0]), r"gates must have the shape of row, \(2, 2\), got \(2,\)"),
        (lambda: combine(ROWS, ROW, GATES, impl="cuda"), "impl must be one of 'auto', 'torch', 'triton', got 'cuda'"),
        (lambda: combine(ROWS, ROW, GATES, impl="triton"), "impl=\"triton\" needs tensors on a GPU, got device 'cpu'"),
        (lambda: combine(ROWS.double(), ROW, GATES, impl="triton"), 'impl="triton" takes rows .* got torch.float64'),
        (lambda: combine(ROWS, ROW, GATES.double(), impl="triton"), 'impl="triton" takes gates .* got torch.float64'),
        (lambda: combine_by_token(ROWS, TOKEN[1:], SLOT, GATES, 2), r"token must have shape \(4,\), one for each row"),
        (lambda: combine_by_token(ROWS, TOKEN, SLOT[1:], GATES, 2), r"slot must have shape \(4,\), one for each row"),
        (lambda: combine_by_token(ROWS, TOKEN, SLOT, GATES[0], 2), r"gates must have 4 elements, one for each row"),
    ],
)
def test_what_does_not_fit_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
