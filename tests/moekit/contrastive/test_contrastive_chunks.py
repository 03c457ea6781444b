"""Chunks, padding, empty texts, precisions: none of them may change the local losses."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import forward_ad

from moekit import local_contrastive_loss, word_alignment_loss
from moekit.contrastive import _chunked_scores, attention_maps, local_scores
from tests.strategies import few

WORDS = torch.tensor([6, 2, 0, 5, 1])


def draw(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Five pairs, one without words."""
    regions = torch.randn(5, 7, 4, dtype=dtype, requires_grad=True)
    words = torch.randn(5, 6, 4, dtype=dtype, requires_grad=True)
    return regions, words, torch.arange(6) < WORDS.unsqueeze(1)


def gradients(loss: Tensor, *leaves: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, leaves)


@pytest.mark.parametrize("chunk_size", [1, 2, 3, 4, 99])
@pytest.mark.parametrize("word_softmax", [True, False])
def test_the_size_of_chunks_does_not_matter(chunk_size: int, word_softmax: bool) -> None:
    regions, words, mask = draw()
    whole, parts = (
        local_contrastive_loss(regions, words, mask, chunk_size=size, word_softmax=word_softmax)
        for size in (5, chunk_size)
    )
    torch.testing.assert_close(parts.scores, whole.scores)
    torch.testing.assert_close(gradients(parts.loss, regions, words), gradients(whole.loss, regions, words))


def test_by_default_a_chunk_fits_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    regions, words, mask = draw(torch.float32)
    # Of one text: five tensors of 5 images, 6 words, 7 regions (more than the width), 4 bytes.
    one = 5 * 5 * 6 * 7 * 4
    assert [_chunked_scores.texts_per_chunk(regions, 6, budget) for budget in (1, one, 3 * one - 1)] == [1, 1, 2]
    sizes = []
    attend = _chunked_scores._attend
    monkeypatch.setattr("moekit.contrastive.scores.CHUNK_BUDGET", 2 * one)
    monkeypatch.setattr(_chunked_scores, "_attend", lambda v, w, *more: sizes.append(len(w)) or attend(v, w, *more))
    local_scores(regions, words, mask)
    assert sizes == [2, 2, 1]


def test_backward_keeps_nothing_but_the_inputs() -> None:
    regions, words, mask = draw()
    saved: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x.numel()) or x, lambda x: x):
        local_scores(regions, words, mask, chunk_size=1)
    assert max(saved) <= max(regions.numel(), words.numel())


def test_padding_does_not_matter() -> None:
    regions, words, mask = draw()
    expected = local_contrastive_loss(regions, words, mask, need_attention=True)
    hidden = torch.where(mask.unsqueeze(2), words, torch.nan).detach()
    longer = torch.cat([torch.full((5, 2, 4), torch.inf, dtype=words.dtype), hidden], dim=1).requires_grad_()
    longer_mask = torch.cat([torch.zeros(5, 2, dtype=torch.bool), mask], dim=1)
    output = local_contrastive_loss(regions, longer, longer_mask, need_attention=True)
    torch.testing.assert_close(output.scores, expected.scores)
    torch.testing.assert_close(output.attention[:, 2:], expected.attention)
    by_regions, by_words = gradients(output.loss, regions, longer)
    torch.testing.assert_close((by_regions, by_words[:, 2:]), gradients(expected.loss, regions, words))
    assert (by_words[~longer_mask] == 0).all()


@pytest.mark.parametrize(
    ("loss", "options"),
    [
        (local_contrastive_loss, {"text_ids": torch.tensor([0, 1, 9, 0, 1])}),
        (word_alignment_loss, {"temperature": 0.3}),
    ],
)
def test_a_text_without_words_counts_for_nothing(loss: Callable, options: dict) -> None:
    regions, words, mask = draw()
    has_words = mask.any(dim=1)
    output = loss(regions, words, mask, **options)
    fewer = {name: value[has_words] if isinstance(value, Tensor) else value for name, value in options.items()}
    expected = loss(regions[has_words], words[has_words], mask[has_words], **fewer)
    torch.testing.assert_close(output.loss, expected.loss)
    torch.testing.assert_close(gradients(output.loss, regions, words), gradients(expected.loss, regions, words))


@pytest.mark.parametrize(
    ("loss", "options"),
    [(local_contrastive_loss, {}), (word_alignment_loss, {"temperature": 0.3})],
)
@pytest.mark.parametrize("num_words", [6, 0])
def test_no_words_at_all_cost_nothing_and_give_no_nan(loss: Callable, options: dict, num_words: int) -> None:
    regions, words, mask = draw()
    none = torch.zeros_like(mask)[:, :num_words]
    output = loss(regions, words[:, :num_words], none, need_attention=True, **options)
    assert output.loss.item() == 0
    assert (output.attention == 0).all()
    assert all((gradient == 0).all() for gradient in gradients(output.loss, regions, words))
    assert (local_scores(regions, words[:, :num_words], none) == -torch.inf).all()


@few
@given(seed=st.integers(0, 2**31), batch=st.integers(1, 5), chunk_size=st.integers(1, 5))
def test_orders_matter_as_they_should(seed: int, batch: int, chunk_size: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    regions = torch.randn(batch, 4, 3, generator=generator, dtype=torch.float64)
    words = torch.randn(batch, 5, 3, generator=generator, dtype=torch.float64)
    mask = torch.rand(batch, 5, generator=generator) < 0.7
    images, texts, places, order = (torch.randperm(n, generator=generator) for n in (batch, batch, 4, 5))
    scores = local_scores(regions, words, mask, chunk_size=chunk_size)
    permuted = local_scores(regions[images], words[texts], mask[texts], chunk_size=chunk_size)
    torch.testing.assert_close(permuted, scores[images][:, texts])
    torch.testing.assert_close(local_scores(regions[:, places], words, mask), scores)
    torch.testing.assert_close(local_scores(regions, words[:, order], mask[:, order]), scores)
    maps = attention_maps(regions, words, mask)
    torch.testing.assert_close(attention_maps(regions[:, places], words, mask), maps[:, :, places])
    torch.testing.assert_close(attention_maps(regions, words[:, order], mask[:, order]), maps[:, order])
    loss = local_contrastive_loss(regions, words, mask).loss
    torch.testing.assert_close(local_contrastive_loss(regions[images], words[images], mask[images]).loss, loss)


@few
@given(seed=st.integers(0, 2**31), num_words=st.integers(1, 6))
def test_a_mean_over_words_is_a_sum_without_the_length(seed: int, num_words: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    regions = torch.randn(2, 4, 3, generator=generator, dtype=torch.float64)
    words = torch.randn(3, num_words, 3, generator=generator, dtype=torch.float64)
    mask = torch.ones(3, num_words, dtype=torch.bool)
    mean, total, highest = (local_scores(regions, words, mask, aggregation=how) for how in ("mean", "sum", "max"))
    torch.testing.assert_close(mean, total - torch.tensor(num_words).double().log())
    assert (mean <= highest + 1e-12).all()
    assert (highest <= total + 1e-12).all()


@pytest.mark.parametrize("frozen", ["regions", "words"])
def test_one_side_may_be_frozen(frozen: str) -> None:
    regions, words, mask = draw()
    leaves = {"regions": regions, "words": words}
    both = dict(zip(leaves, gradients(local_scores(regions, words, mask)[:, 0].sum(), regions, words), strict=True))
    leaves[frozen] = leaves[frozen].detach()
    scores = local_scores(**leaves, word_mask=mask)
    free = "words" if frozen == "regions" else "regions"
    torch.testing.assert_close(gradients(scores[:, 0].sum(), leaves[free])[0], both[free])


@pytest.mark.parametrize(
    ("loss", "options"),
    [(local_contrastive_loss, {"chunk_size": 2}), (word_alignment_loss, {"temperature": 0.5})],
)
@pytest.mark.parametrize("mode", ["autocast", "bfloat16", "float16"])
def test_half_precision(loss: Callable, options: dict, mode: str) -> None:
    regions, words, mask = draw(torch.float32)
    expected = loss(regions, words, mask, **options)
    exact = gradients(expected.loss, regions, words)
    if mode == "autocast":
        with torch.autocast("cpu", torch.bfloat16):
            output = loss(regions, words, mask, need_attention=True, **options)
            rounded = gradients(output.loss, regions, words)
    else:
        dtype = getattr(torch, mode)
        leaves = tuple(x.detach().to(dtype).requires_grad_() for x in (regions, words))
        output = loss(*leaves, mask, need_attention=True, **options)
        rounded = gradients(output.loss, *leaves)
        assert all(gradient.dtype == dtype for gradient in rounded)
    assert output.loss.dtype == output.attention.dtype == torch.float32
    torch.testing.assert_close(output.loss, expected.loss, rtol=3e-2, atol=3e-2)
    for mine, theirs in zip(rounded, exact, strict=True):
        assert (mine.float() - theirs).norm() < 5e-2 * theirs.norm()


def test_differentiating_twice_is_refused() -> None:
    regions, words, mask = draw()
    (gradient,) = torch.autograd.grad(local_scores(regions, words, mask)[:, 0].sum(), regions, create_graph=True)
    with pytest.raises(RuntimeError, match="local_scores has no second derivatives"):
        gradient.sum().backward()


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
def test_forward_mode_is_refused_and_gives_no_zeros() -> None:
    regions, words, mask = draw()
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match="forward mode AD"):
        local_scores(forward_ad.make_dual(regions, torch.ones_like(regions)), words, mask)
    with pytest.raises(RuntimeError, match="functorch transforms"):
        torch.func.jvp(lambda x: local_scores(x, words, mask), (regions,), (torch.ones_like(regions),))


def test_layouts_do_not_matter() -> None:
    regions, words, mask = draw()
    expected = local_contrastive_loss(regions, words, mask)
    grids = regions.detach().mT.contiguous().mT.requires_grad_()  # as flattened from (B, D, H, W)
    turned = words.detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
    output = local_contrastive_loss(grids, turned, mask.T.contiguous().T)
    torch.testing.assert_close(gradients(output.loss, grids, turned), gradients(expected.loss, regions, words))


def test_compiles_as_one_graph() -> None:
    regions, words, mask = draw(torch.float32)

    def loss(regions: Tensor, words: Tensor) -> Tensor:
        return local_contrastive_loss(regions, words, mask, chunk_size=3).loss

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    expected, output = loss(regions, words), compiled(regions, words)
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(gradients(output, regions, words), gradients(expected, regions, words))
