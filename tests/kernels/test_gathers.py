"""Which rows are gathered into memory: laws of the decision, the shapes that its documentation names, the override."""

import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moekit_kernels.moe_ffn import gathers
from moekit_kernels.moe_ffn.gathers import Gathers
from moekit_kernels.targets import GFX942, INTERPRETER, SM_80, SM_86, SM_90, SM_100

NOWHERE, EVERYWHERE = Gathers(False, False, False), Gathers(True, True, True)

laws = settings(max_examples=200, deadline=None, derandomize=True, database=None)
sizes = st.integers(1, 64).map(lambda n: 64 * n)
tokens = st.integers(1, 2**17)
top_ks = st.integers(1, 16)


def decide(num_tokens, top_k, dim, hidden, *, target=SM_90, dtype=torch.bfloat16, up=2, out_dim=None, **options):
    """The decision for ``hidden`` columns of which the up product has ``up`` times as many."""
    widths = (dim, up * hidden, hidden, dim if out_dim is None else out_dim)
    return gathers.gathers(target, dtype, num_tokens, num_tokens * top_k, widths, **options)


def at_most(one, other):
    """Whether ``other`` gathers all that ``one`` does."""
    return all(a <= b for a, b in zip(one, other, strict=True))


@laws
@given(tokens, top_ks, sizes, sizes, sizes)
def test_more_columns_never_gather_less(num_tokens, top_k, dim, hidden, more):
    assert at_most(decide(num_tokens, top_k, dim, hidden), decide(num_tokens, top_k, dim, hidden + more))


@laws
@given(tokens, tokens, top_ks, sizes, sizes)
def test_more_tokens_never_gather_less(num_tokens, more, top_k, dim, hidden):
    assert at_most(decide(num_tokens, top_k, dim, hidden), decide(num_tokens + more, top_k, dim, hidden))


@laws
@given(tokens, top_ks, sizes, sizes)
def test_reading_each_token_once_never_gathers_less(num_tokens, top_k, dim, hidden):
    every_row = decide(num_tokens, top_k, dim, hidden, read_once=False)
    assert at_most(every_row, decide(num_tokens, top_k, dim, hidden))


@laws
@given(tokens, top_ks, sizes, sizes)
def test_frozen_weights_never_gather_more_and_no_tokens_for_them(num_tokens, top_k, dim, hidden):
    trained = decide(num_tokens, top_k, dim, hidden)
    frozen = decide(num_tokens, top_k, dim, hidden, weight_grad=False)
    assert at_most(frozen, trained)
    assert frozen.up == trained.up
    assert not frozen.tokens


@laws
@given(tokens, top_ks, sizes, sizes, sizes)
def test_each_width_concerns_its_own_rows(num_tokens, top_k, dim, other, hidden):
    """Tokens have the input's width, gradients the output's."""
    one = decide(num_tokens, top_k, dim, hidden, out_dim=other)
    turned = decide(num_tokens, top_k, other, hidden, out_dim=dim)
    same = decide(num_tokens, top_k, dim, hidden)
    assert (one.up, one.tokens) == (same.up, same.tokens)
    assert turned.grad == same.grad


@laws
@given(st.integers(1, 8192), sizes, sizes)
def test_small_batches_of_the_usual_sizes_gather_nothing(rows, dim, hidden):
    """One more launch would cost more than the copy engine saves."""
    if dim <= 1024 and hidden <= 1024:
        assert decide(rows, 1, dim, hidden) == NOWHERE
        assert decide(-(-rows // 2), 2, dim, hidden) == NOWHERE


@pytest.mark.parametrize("target", [SM_80, SM_86, GFX942, INTERPRETER], ids=lambda target: target.name)
def test_never_without_descriptors(target):
    assert decide(32768, 8, 4096, 14336, target=target) == NOWHERE
    with gathers.override(up=True, grad=True, tokens=True):
        assert decide(32768, 8, 4096, 14336, target=target) == NOWHERE


def test_never_for_float32_odd_widths_and_no_rows():
    assert decide(32768, 8, 4096, 14336, dtype=torch.float16) == EVERYWHERE
    assert decide(32768, 8, 4096, 14336, target=SM_100) == EVERYWHERE
    assert decide(32768, 8, 4096, 14336, dtype=torch.float32) == NOWHERE
    assert decide(32768, 8, 4096, 14331) == NOWHERE
    assert decide(32768, 8, 4095, 14336) == NOWHERE
    assert decide(0, 8, 4096, 14336) == NOWHERE


@pytest.mark.parametrize(
    ("shape", "decision"),
    [
        ((32768, 8, 2048, 768), Gathers(False, True, True)),  # Qwen3
        ((8192, 2, 4096, 14336), EVERYWHERE),  # Mixtral
        ((32768, 8, 4096, 512), Gathers(False, False, True)),
        ((32768, 8, 2048, 1024), EVERYWHERE),  # OLMoE
        ((4096, 2, 1024, 1024), NOWHERE),
        ((32, 2, 1024, 4096), NOWHERE),
    ],
)
def test_shapes_that_the_documentation_names(shape, decision):
    assert decide(*shape) == decision


def test_least_columns_that_the_documentation_names():
    """With a launch that costs nothing, as for very many rows."""
    rows = (2**26, 8, 8192)
    assert decide(*rows, 808).up
    assert not decide(*rows, 784).up
    assert decide(*rows, 312).tokens
    assert not decide(*rows, 304).tokens
    assert decide(*rows, 592).grad
    assert not decide(*rows, 584).grad


def test_override_holds_for_every_thread_and_ends():
    seen = []
    with gathers.override(up=False, grad=True, tokens=False):
        with gathers.override(up=True, grad=False, tokens=False):
            thread = threading.Thread(target=lambda: seen.append(decide(1, 1, 64, 64)))
            thread.start()
            thread.join()
        seen.append(decide(1, 1, 64, 64))
    seen.append(decide(1, 1, 64, 64))
    assert seen == [Gathers(True, False, False), Gathers(False, True, False), NOWHERE]
