"""The attention functions: one answer from all of them, and xFormers behind a stand-in."""

import math
import sys
from types import ModuleType

import pytest
import torch
from torch import Tensor

from moekit.fusion import sdpa_attention, weighted_attention, xformers_attention

SCALE = 0.3


def make_qkv(queries: int = 3, keys: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(2, 4, n, 8, generator=generator) for n in (queries, keys, keys))


def make_mask() -> Tensor:
    return torch.tensor([[True, False, True, True, False], [True] * 5])[:, None, None, :]


def install_xformers(monkeypatch: pytest.MonkeyPatch, function) -> None:
    package, ops = ModuleType("xformers"), ModuleType("xformers.ops")
    ops.memory_efficient_attention = function
    package.ops = ops
    monkeypatch.setitem(sys.modules, "xformers", package)
    monkeypatch.setitem(sys.modules, "xformers.ops", ops)


def documented_xformers(query, key, value, attn_bias=None, p=0.0, scale=None):
    """The reference code of xFormers' documentation, with the checks of its inputs and its bias."""
    batch, num_queries, heads, _ = query.shape
    scores = torch.einsum("bmhk,bnhk->bhmn", query * scale, key)
    if attn_bias is not None:
        assert attn_bias.shape == (batch, heads, num_queries, key.shape[1])
        assert attn_bias.dtype == query.dtype
        assert all(stride % 8 == 0 for stride in attn_bias.stride()[:-1])
        assert attn_bias.stride(-1) == 1
        scores = scores + attn_bias
    weights = torch.nn.functional.dropout(scores.softmax(-1), p)
    return torch.einsum("bhmn,bnhk->bmhk", weights, value)


@pytest.mark.parametrize("masked", [False, True])
def test_explicit_softmax_equals_sdpa(masked: bool) -> None:
    mask = make_mask() if masked else None
    explicit = weighted_attention(*make_qkv(), mask=mask, dropout_p=0.0, scale=SCALE)
    torch.testing.assert_close(explicit.output, sdpa_attention(*make_qkv(), mask=mask, dropout_p=0.0, scale=SCALE))
    torch.testing.assert_close(explicit.weights.sum(-1), torch.ones(2, 4, 3))
    if masked:
        assert explicit.weights.masked_select(~make_mask()).count_nonzero() == 0


def test_explicit_softmax_is_float32_for_half_inputs_also_under_autocast() -> None:
    q, k, v = (x.bfloat16() for x in make_qkv())
    plain = weighted_attention(q, k, v, mask=None, dropout_p=0.0, scale=SCALE)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = weighted_attention(q, k, v, mask=None, dropout_p=0.0, scale=SCALE)
    expected = (SCALE * q.float() @ k.float().mT).softmax(-1)
    assert plain.output.dtype == cast.output.dtype == torch.bfloat16
    torch.testing.assert_close(plain.weights, expected)
    torch.testing.assert_close(cast.weights, expected)


def test_returned_weights_are_those_before_dropout() -> None:
    q, k, v = make_qkv()
    torch.manual_seed(0)
    dropped = weighted_attention(q, k, v, mask=None, dropout_p=0.5, scale=SCALE)
    kept = weighted_attention(q, k, v, mask=None, dropout_p=0.0, scale=SCALE)
    assert torch.equal(dropped.weights, kept.weights)
    assert not torch.allclose(dropped.output, kept.output)


def test_xformers_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    # None in sys.modules makes the import fail even where xFormers is installed.
    monkeypatch.setitem(sys.modules, "xformers", None)
    monkeypatch.delitem(sys.modules, "xformers.ops", raising=False)
    with pytest.raises(ImportError, match=r"pip install xformers.*attention=sdpa_attention"):
        xformers_attention(*make_qkv(), mask=None, dropout_p=0.0, scale=SCALE)


@pytest.mark.parametrize("keys", [5, 8])
@pytest.mark.parametrize("masked", [False, True])
def test_xformers_layout_and_bias_give_what_sdpa_gives(
    monkeypatch: pytest.MonkeyPatch, masked: bool, keys: int
) -> None:
    install_xformers(monkeypatch, documented_xformers)
    mask = torch.arange(keys) < torch.tensor([[2], [keys]]) if masked else None
    mask = None if mask is None else mask[:, None, None, :]
    arguments = {"mask": mask, "dropout_p": 0.0, "scale": SCALE}
    torch.testing.assert_close(
        xformers_attention(*make_qkv(keys=keys), **arguments), sdpa_attention(*make_qkv(keys=keys), **arguments)
    )


def test_xformers_gets_the_dropout(monkeypatch: pytest.MonkeyPatch) -> None:
    install_xformers(monkeypatch, documented_xformers)
    q, k, _ = make_qkv()
    torch.manual_seed(0)
    out = xformers_attention(q, k, torch.ones_like(k), mask=None, dropout_p=0.5, scale=SCALE)
    # Weights that sum to 1 stay at 1 only when none is dropped.
    assert (out - 1.0).abs().max() > 0.1


def test_xformers_without_a_kernel_names_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args, **_kwargs):
        raise NotImplementedError("No operator found for `memory_efficient_attention_forward`")

    install_xformers(monkeypatch, refuse)
    with pytest.raises(RuntimeError, match=r"no kernel for q on device cpu with dtype torch.float32 and shape"):
        xformers_attention(*make_qkv(), mask=None, dropout_p=0.0, scale=SCALE)


def test_scale_is_a_factor_on_the_scores() -> None:
    q, k, v = make_qkv()
    doubled = sdpa_attention(q * 2, k, v, mask=None, dropout_p=0.0, scale=1 / math.sqrt(8))
    torch.testing.assert_close(doubled, sdpa_attention(q, k, v, mask=None, dropout_p=0.0, scale=2 / math.sqrt(8)))
