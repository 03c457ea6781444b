"""Scores, attention and losses of regions and words against GLoRIA's formulas written as loops."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from moekit import local_contrastive_loss, word_alignment_loss
from moekit.contrastive import attention_maps, local_scores
from tests.moekit.contrastive import gloria_loops

LENGTHS = (4, 1, 3)
TEMPERATURES = (4.0, 5.0, 10.0)
FORMS = pytest.mark.parametrize(
    ("aggregation", "word_softmax"), [("mean", True), ("sum", True), ("mean", False), ("sum", False)]
)


@pytest.fixture
def batch() -> tuple[Tensor, Tensor, Tensor]:
    """Three images of five regions; three reports of up to four words, NaN in the padding."""
    regions = torch.randn(3, 5, 3, dtype=torch.float64, requires_grad=True)
    words = torch.randn(3, 4, 3, dtype=torch.float64)
    mask = torch.arange(4) < torch.tensor(LENGTHS).unsqueeze(1)
    words[~mask] = torch.nan
    return regions, words.requires_grad_(), mask


def reports_of(words: Tensor) -> list[Tensor]:
    return [report[:length] for report, length in zip(words, LENGTHS, strict=True)]


def assert_same(output: Tensor, expected: Tensor, leaves: tuple[Tensor, ...]) -> None:
    """Values and gradients."""
    torch.testing.assert_close(output, expected, rtol=1e-10, atol=1e-12)
    weights = torch.randn_like(expected)
    for mine, theirs in zip(
        *(torch.autograd.grad((x * weights).sum(), leaves) for x in (output, expected)), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("aggregation", ["mean", "sum", "max"])
@pytest.mark.parametrize("word_softmax", [True, False])
def test_scores_are_those_of_loops(batch: tuple[Tensor, Tensor, Tensor], aggregation: str, word_softmax: bool) -> None:
    regions, words, mask = batch
    images = regions[:2]  # as many images as texts is no condition
    output = local_scores(images, words, mask, aggregation=aggregation, word_softmax=word_softmax, chunk_size=2)
    expected = [
        torch.stack([gloria_loops.score(v, t, 4, 5, aggregation, word_softmax) for t in reports_of(words)])
        for v in images
    ]
    assert_same(output, torch.stack(expected), (regions, words))


@FORMS
@pytest.mark.parametrize("texts", [None, [8, 2, 8]])
def test_the_local_loss_is_that_of_loops(
    batch: tuple[Tensor, Tensor, Tensor], aggregation: str, word_softmax: bool, texts: list[int] | None
) -> None:
    regions, words, mask = batch
    output = local_contrastive_loss(
        regions,
        words,
        mask,
        temperatures=(3.0, 2.0, 1.5),
        aggregation=aggregation,
        word_softmax=word_softmax,
        text_ids=None if texts is None else torch.tensor(texts),
    )
    expected = gloria_loops.local_loss(
        regions, reports_of(words), (3.0, 2.0, 1.5), aggregation, texts or range(3), word_softmax
    )
    assert_same(output.loss, expected, (regions, words))


def test_glorias_temperatures_are_the_default(batch: tuple[Tensor, Tensor, Tensor]) -> None:
    output = local_contrastive_loss(*batch)
    expected = gloria_loops.local_loss(batch[0], reports_of(batch[1]), TEMPERATURES, "mean", range(3))
    torch.testing.assert_close(output.loss, expected)
    torch.testing.assert_close(output.scores, local_scores(*batch))
    assert output.attention is None


@pytest.mark.parametrize("aggregation", ["mean", "sum"])
def test_the_alignment_of_words_is_that_of_loops(batch: tuple[Tensor, Tensor, Tensor], aggregation: str) -> None:
    regions, words, mask = batch
    output = word_alignment_loss(regions, words, mask, temperature=0.4, aggregation=aggregation)
    expected = gloria_loops.report_loss(regions, reports_of(words), 0.4, aggregation)
    assert_same(output.loss, expected, (regions, words))
    assert output.attention is None


@pytest.mark.parametrize(
    ("loss", "options", "scale", "word_softmax"),
    [
        (local_contrastive_loss, {"word_softmax": True}, 4.0, True),
        (local_contrastive_loss, {"word_softmax": False}, 4.0, False),
        (word_alignment_loss, {"temperature": 0.5}, 2.0, False),
    ],
)
def test_attention_is_that_of_loops(
    batch: tuple[Tensor, Tensor, Tensor], loss: Callable, options: dict, scale: float, word_softmax: bool
) -> None:
    regions, words, mask = batch
    output = loss(*batch, need_attention=True, **options).attention
    torch.testing.assert_close(output, attention_maps(*batch, temperature=scale, word_softmax=word_softmax))
    torch.testing.assert_close(output.sum(dim=2), mask.double())
    for i, report in enumerate(reports_of(words)):
        expected = gloria_loops.attention(regions[i], report, scale, word_softmax)
        torch.testing.assert_close(output[i, : len(report)], torch.stack([torch.stack(row) for row in expected]))
        assert (output[i, len(report) :] == 0).all()


def test_duplicates_by_hand() -> None:
    # Regions of one number per image, words of one: every attention is 1 and scores are 5 times cosines.
    regions = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]], [[1.0, 0.0]]], dtype=torch.float64)
    mask = torch.ones(3, 1, dtype=torch.bool)
    options = {"temperatures": (4.0, 5.0, 0.2), "text_ids": torch.tensor([1, 2, 1])}
    output = local_contrastive_loss(regions, regions, mask, **options)
    torch.testing.assert_close(output.scores, 5 * torch.tensor([[1.0, 0, 1], [0, 1, 0], [1, 0, 1]]).double())
    # Rows and columns with two positives: logits (1, 0, 1); with one: (0, 1, 0).
    two, one = math.log(2 * math.e + 1) - 1, math.log(math.e + 2) - 1
    assert output.loss.item() == pytest.approx((2 * two + one) / 3, rel=1e-12)
    apart = local_contrastive_loss(regions, regions, mask, temperatures=(4.0, 5.0, 0.2))
    assert apart.loss.item() == pytest.approx(output.loss.item(), rel=1e-12)  # ties: the same value, other gradients


def test_all_scores_alike_is_chance() -> None:
    regions, mask = torch.ones(4, 3, 2), torch.ones(4, 5, dtype=torch.bool)
    assert local_contrastive_loss(regions, torch.ones(4, 5, 2), mask).loss.item() == pytest.approx(math.log(4))
    within = word_alignment_loss(regions, torch.ones(4, 5, 2), mask, temperature=0.1)
    assert within.loss.item() == pytest.approx(math.log(5))


def test_gradients_by_finite_differences(batch: tuple[Tensor, Tensor, Tensor]) -> None:
    regions, words, mask = batch
    words = words.detach().nan_to_num().requires_grad_()
    for loss, options in ((local_contrastive_loss, {"chunk_size": 2}), (word_alignment_loss, {"temperature": 0.7})):
        assert torch.autograd.gradcheck(
            lambda v, w, loss=loss, options=options: loss(v, w, mask, **options).loss, (regions, words)
        )


def test_a_zero_word_and_a_zero_context_give_finite_gradients() -> None:
    regions = torch.tensor([[[1.0, 0.0], [-1.0, 0.0]]], requires_grad=True)
    words = torch.tensor([[[0.0, 0.0], [0.0, 1.0]]], requires_grad=True)  # equal attention: the context is zero too
    scores = local_scores(regions, words, torch.ones(1, 2, dtype=torch.bool))
    assert scores.item() == 0
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(scores, (regions, words)))
