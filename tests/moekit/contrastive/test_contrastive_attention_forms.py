"""Cosine attention, regions that do not count, and a temperature that is trained."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from moekit import local_contrastive_loss, word_alignment_loss
from moekit.contrastive import attention_maps, local_scores
from tests.moekit.contrastive import gloria_loops

FORMS = [
    (similarity, aggregation, word_softmax)
    for similarity in ("dot", "cosine")
    for aggregation in ("mean", "sum", "max")
    for word_softmax in (True, False)
]
LOSSES = [
    (local_contrastive_loss, {"word_softmax": True}),
    (local_contrastive_loss, {"word_softmax": False}),
    (word_alignment_loss, {"temperature": 0.4}),
]


@pytest.fixture
def pairs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Three images of five regions, of which four, five and two count; texts of four words, one and three."""
    regions = torch.randn(3, 5, 3, dtype=torch.float64, requires_grad=True)
    words = torch.randn(3, 4, 3, dtype=torch.float64, requires_grad=True)
    mask = torch.arange(4) < torch.tensor([4, 1, 3]).unsqueeze(1)
    counts = torch.tensor([[1, 1, 0, 1, 1], [1, 1, 1, 1, 1], [0, 0, 0, 1, 1]], dtype=torch.bool)
    return regions, words, mask, counts


def gradients(loss: Tensor, *leaves: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, leaves)


@pytest.mark.parametrize(("similarity", "aggregation", "word_softmax"), FORMS)
def test_scores_of_what_counts_are_those_of_loops(pairs, similarity, aggregation, word_softmax) -> None:
    regions, words, mask, counts = pairs
    temperature = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    output = local_scores(
        regions,
        words,
        mask,
        temperatures=(temperature, 2.0),
        aggregation=aggregation,
        word_softmax=word_softmax,
        similarity=similarity,
        region_mask=counts,
        chunk_size=2,
    )
    taken = [image[which] for image, which in zip(regions, counts, strict=True)]
    texts = [text[which] for text, which in zip(words, mask, strict=True)]
    if similarity == "cosine":
        taken, texts = ([F.normalize(x, dim=-1) for x in xs] for xs in (taken, texts))
    rows = [
        torch.stack([gloria_loops.score(v, t, temperature, 2, aggregation, word_softmax) for t in texts]) for v in taken
    ]
    expected = torch.stack(rows)
    torch.testing.assert_close(output, expected, rtol=1e-10, atol=1e-12)
    weights = torch.randn_like(expected)
    leaves = (regions, words, temperature)
    mine, theirs = (gradients((x * weights).sum(), *leaves) for x in (output, expected))
    torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("word_softmax", [True, False])
def test_a_temperature_alone_may_be_trained(pairs, word_softmax) -> None:
    regions, words, mask, counts = (x.detach() for x in pairs)
    options = {"word_softmax": word_softmax, "region_mask": counts, "chunk_size": 1}

    def loss(temperature: Tensor) -> Tensor:
        return local_contrastive_loss(regions, words, mask, temperatures=(temperature, 5.0, 10.0), **options).loss

    assert torch.autograd.gradcheck(loss, torch.tensor(1.5, dtype=torch.float64, requires_grad=True))


@pytest.mark.parametrize(("loss", "options"), LOSSES)
@pytest.mark.parametrize("similarity", ["dot", "cosine"])
def test_what_stands_in_regions_that_do_not_count_does_not_matter(
    pairs, loss: Callable, options: dict, similarity: str
) -> None:
    regions, words, mask, counts = pairs
    options = options | {"similarity": similarity, "region_mask": counts, "need_attention": True}
    other = torch.where(counts.unsqueeze(2), regions, torch.nan).detach().requires_grad_()
    expected, output = loss(regions, words, mask, **options), loss(other, words, mask, **options)
    torch.testing.assert_close(output.loss, expected.loss)
    assert (output.attention.masked_select(~counts.unsqueeze(1)) == 0).all()
    torch.testing.assert_close(output.attention.sum(2), mask.double())
    by_regions, by_words = gradients(output.loss, other, words)
    torch.testing.assert_close((by_regions, by_words), gradients(expected.loss, regions, words))
    assert (by_regions[~counts] == 0).all()
    all_count = loss(regions, words, mask, **options | {"region_mask": torch.ones_like(counts)}).loss
    torch.testing.assert_close(all_count, loss(regions, words, mask, **options | {"region_mask": None}).loss)
    assert all_count != expected.loss


@pytest.mark.parametrize(("loss", "options"), LOSSES)
def test_an_image_whose_regions_do_not_count_attends_to_nothing(pairs, loss: Callable, options: dict) -> None:
    regions, words, mask, counts = pairs
    counts = counts & torch.tensor([[True], [False], [True]])
    output = loss(regions, words, mask, region_mask=counts, need_attention=True, **options)
    assert (output.attention[1] == 0).all()
    assert output.loss.isfinite()
    assert all(gradient.isfinite().all() for gradient in gradients(output.loss, regions, words))


@pytest.mark.parametrize(("loss", "options"), LOSSES)
def test_lengths_do_not_matter_to_cosines(pairs, loss: Callable, options: dict) -> None:
    regions, words, mask, _ = pairs
    options = options | {"similarity": "cosine", "need_attention": True}
    scaled = loss(regions * torch.rand(3, 5, 1) * 9, words * torch.rand(3, 4, 1), mask, **options)
    expected = loss(regions, words, mask, **options)
    torch.testing.assert_close(scaled.attention, expected.attention)
    torch.testing.assert_close(scaled.loss, expected.loss)


def test_cosines_by_hand() -> None:
    regions = torch.tensor([[[9.0, 0.0], [0.0, 0.1], [0.0, 0.0]]])
    maps = attention_maps(
        regions, 7 * regions[:, :1], torch.ones(1, 1).bool(), temperature=2.0, word_softmax=False, similarity="cosine"
    )
    torch.testing.assert_close(maps[0, 0], torch.tensor([2.0, 0.0, 0.0]).softmax(0))


@pytest.mark.parametrize("function", [attention_maps, local_scores, local_contrastive_loss, word_alignment_loss])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"similarity": "euclid"}, "similarity must be one of 'dot', 'cosine', got 'euclid'"),
        ({"region_mask": torch.ones(2, 4).bool()}, r"region_mask must be a bool tensor of shape \(2, 5\)"),
        ({"region_mask": torch.ones(2, 5)}, r"region_mask must be a bool tensor of shape \(2, 5\)"),
        ({"region_mask": torch.ones(2, 5, device="meta").bool()}, "region_mask must be on the device of regions"),
    ],
)
def test_mistakes(function: Callable, change: dict, message: str) -> None:
    arguments = {"regions": torch.ones(2, 5, 4), "words": torch.ones(2, 3, 4), "word_mask": torch.ones(2, 3).bool()}
    if function is word_alignment_loss:
        arguments["temperature"] = 0.1
    with pytest.raises(ValueError, match=message):
        function(**arguments | change)


def test_temperatures_that_are_no_numbers() -> None:
    arguments = (torch.ones(2, 5, 4), torch.ones(2, 3, 4), torch.ones(2, 3).bool())
    with pytest.raises(ValueError, match=r"temperature must be a tensor of no dimension or a number, got shape \(1,\)"):
        attention_maps(*arguments, temperature=torch.ones(1))
    with pytest.raises(ValueError, match="temperatures must be of a floating dtype"):
        local_scores(*arguments, temperatures=(torch.tensor(1), 5.0))


def test_a_trained_temperature_compiles_as_one_graph(pairs) -> None:
    regions, words, mask, counts = pairs
    temperature = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)

    def loss(regions: Tensor, temperature: Tensor) -> Tensor:
        options = {"temperatures": (temperature, 5.0, 10.0), "region_mask": counts, "similarity": "cosine"}
        return local_contrastive_loss(regions, words, mask, chunk_size=2, **options).loss

    expected = loss(regions, temperature)
    output = torch.compile(loss, fullgraph=True, backend="aot_eager")(regions, temperature)
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(gradients(output, regions, temperature), gradients(expected, regions, temperature))
