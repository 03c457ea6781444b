"""Pooling of padded sequences against a loop over samples."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from moekit.fusion import first_token, last_token, masked_max, masked_mean

POOLS = [masked_mean, masked_max, first_token, last_token]
LAW = settings(deadline=None, max_examples=20)
every_pool = pytest.mark.parametrize("pool", POOLS, ids=lambda pool: pool.__name__)

ORACLE = {
    masked_mean: lambda real: sum(real) / len(real),
    masked_max: lambda real: torch.stack(real).max(0).values,
    first_token: lambda real: real[0],
    last_token: lambda real: real[-1],
}


def naive(pool, tokens: Tensor, mask: Tensor) -> Tensor:
    rows = []
    for sample, keep in zip(tokens, mask, strict=True):
        real = [token for token, kept in zip(sample, keep, strict=True) if kept]
        rows.append(ORACLE[pool](real) if real else torch.zeros(tokens.shape[2], dtype=tokens.dtype))
    return torch.stack(rows)


def make(seed: int, batch: int, sequence: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(batch, sequence, 3, generator=generator, dtype=torch.float64)
    return tokens, torch.rand(batch, sequence, generator=generator) < 0.5


@every_pool
@LAW
@given(seed=st.integers(0, 2**31 - 1), batch=st.integers(1, 4), sequence=st.integers(1, 6), masked=st.booleans())
def test_equals_a_loop_over_samples(pool, seed: int, batch: int, sequence: int, masked: bool) -> None:
    tokens, mask = make(seed, batch, sequence)
    if not masked:
        torch.testing.assert_close(pool(tokens), naive(pool, tokens, torch.ones_like(mask)))
    else:
        torch.testing.assert_close(pool(tokens, mask), naive(pool, tokens, mask))


@every_pool
def test_padding_on_either_side(pool) -> None:
    tokens, _ = make(0, 1, 3)
    right = torch.nn.functional.pad(tokens, (0, 0, 0, 2), value=math.nan)
    left = torch.nn.functional.pad(tokens, (0, 0, 2, 0), value=math.nan)
    both = torch.cat([right, left])
    mask = torch.tensor([[True, True, True, False, False], [False, False, True, True, True]])
    torch.testing.assert_close(pool(both, mask), pool(tokens).expand(2, 3))


@every_pool
@pytest.mark.parametrize("filler", [math.nan, math.inf, -math.inf])
def test_what_padding_holds_never_matters_nor_gets_a_gradient(pool, filler: float) -> None:
    tokens, _ = make(1, 3, 4)
    mask = torch.tensor([[True, True, False, False], [False, True, False, True], [False] * 4])
    poisoned = tokens.masked_fill(~mask[..., None], filler).requires_grad_()
    clean = tokens.clone().requires_grad_()
    torch.testing.assert_close(pool(poisoned, mask), pool(clean, mask))
    pool(poisoned, mask).square().sum().backward()
    pool(clean, mask).square().sum().backward()
    torch.testing.assert_close(poisoned.grad, clean.grad)
    assert poisoned.grad.masked_select(~mask[..., None]).count_nonzero() == 0
    assert poisoned.grad.count_nonzero() > 0


@every_pool
def test_no_real_token_gives_zeros(pool) -> None:
    tokens, mask = make(2, 2, 3)
    assert torch.equal(pool(tokens, torch.zeros_like(mask)), torch.zeros(2, 3, dtype=torch.float64))


@every_pool
@pytest.mark.parametrize("masked", [False, True])
def test_empty_sequence_gives_zeros(pool, masked: bool) -> None:
    tokens = torch.empty(2, 0, 3, requires_grad=True)
    pooled = pool(tokens, torch.empty(2, 0, dtype=torch.bool) if masked else None)
    assert torch.equal(pooled, torch.zeros(2, 3))
    pooled.sum().backward()


@every_pool
def test_gradcheck(pool) -> None:
    tokens, mask = make(3, 3, 4)
    assert torch.autograd.gradcheck(lambda x: pool(x, mask), tokens.requires_grad_())


@every_pool
def test_non_contiguous_tokens_and_dtype(pool) -> None:
    tokens, mask = make(4, 3, 4)
    strided = tokens.transpose(1, 2).contiguous().transpose(1, 2)
    assert not strided.is_contiguous()
    torch.testing.assert_close(pool(strided, mask), pool(tokens, mask))
    half = pool(tokens.bfloat16(), mask)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.double(), pool(tokens.bfloat16().double(), mask), rtol=2**-8, atol=0.0)


def test_mean_of_a_long_half_precision_sequence_does_not_overflow() -> None:
    tokens = torch.full((1, 300, 1), 1000.0, dtype=torch.float16)
    assert masked_mean(tokens).item() == 1000.0


@every_pool
def test_compiles_to_one_graph_for_every_length(pool) -> None:
    compiled = torch.compile(pool, fullgraph=True, dynamic=True, backend="aot_eager")
    for sequence in (3, 5):
        tokens, mask = make(5, 2, sequence)
        torch.testing.assert_close(compiled(tokens, mask), pool(tokens, mask))


@every_pool
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tokens": torch.zeros(2, 3)}, r"tokens must have shape \(batch, sequence, width\), got shape \(2, 3\)"),
        ({"tokens": torch.zeros(2, 3, 4).long()}, "tokens must be of a floating dtype, got torch.int64"),
        ({"mask": torch.ones(2, 4).bool()}, r"mask must be a bool tensor of shape \(2, 3\).*\(2, 4\)"),
        ({"mask": torch.ones(2, 3)}, "mask must be a bool tensor.*got torch.float32"),
        ({"mask": torch.ones(2, 3, device="meta").bool()}, "mask must be on the device of tokens, cpu, got meta"),
    ],
)
def test_wrong_inputs(pool, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pool(**({"tokens": torch.zeros(2, 3, 4)} | arguments))
