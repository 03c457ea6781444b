"""The loss of whole images with whole texts against loops, by hand, and in the places where it is used."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from moekit import global_contrastive_loss
from tests.moekit.contrastive.gloria_loops import global_loss
from tests.strategies import few

TEXTS = [3, 7, 3, 0, 3]


def pair(batch: int = 5, width: int = 4) -> tuple[Tensor, Tensor]:
    return tuple(torch.randn(batch, width, dtype=torch.float64, requires_grad=True) for _ in range(2))


@pytest.mark.parametrize("texts", [None, TEXTS])
def test_values_and_gradients_are_those_of_loops(texts: list[int] | None) -> None:
    image, text = pair()
    loss = global_contrastive_loss(
        image, text, logit_scale=3.0, text_ids=None if texts is None else torch.tensor(texts)
    )
    expected = global_loss(image, text, 3.0, texts or range(5))
    torch.testing.assert_close(loss, expected)
    for mine, theirs in zip(*(torch.autograd.grad(x, (image, text)) for x in (loss, expected)), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_a_temperature_is_the_inverse_of_a_scale_and_a_scale_can_be_learned() -> None:
    image, text = pair()
    scale = torch.tensor([4.0], dtype=torch.float64, requires_grad=True)
    learned = global_contrastive_loss(image, text, logit_scale=scale)
    torch.testing.assert_close(learned, global_contrastive_loss(image, text, temperature=0.25))
    torch.testing.assert_close(learned, global_contrastive_loss(image, text, logit_scale=4))
    step = 1e-6
    higher, lower = (global_contrastive_loss(image, text, logit_scale=4 + change) for change in (step, -step))
    (gradient,) = torch.autograd.grad(learned, scale)
    torch.testing.assert_close(gradient[0], (higher - lower) / (2 * step), rtol=1e-6, atol=1e-8)


def test_duplicates_by_hand() -> None:
    # Two pairs with one text: every logit 1/2 apart, both columns positives of both rows.
    image = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    text = torch.tensor([[1.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    loss = global_contrastive_loss(image, text, logit_scale=1.0, text_ids=torch.tensor([5, 5]))
    # Rows are (1, 1) and (0, 0): ln 2 each. Columns are (1, 0) twice: log(e + 1) - 1/2 each.
    expected = (math.log(2) + math.log(math.e + 1) - 0.5) / 2
    assert loss.item() == pytest.approx(expected, rel=1e-12)


def test_one_direction_is_a_cross_entropy_of_rows() -> None:
    image, text = pair()
    logits = 3 * torch.nn.functional.cosine_similarity(image.unsqueeze(1), text.unsqueeze(0), dim=2)
    for directions, rows in (("image-to-text", logits), ("text-to-image", logits.T)):
        loss = global_contrastive_loss(image, text, logit_scale=3.0, directions=directions)
        torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(rows, torch.arange(5)))


def test_at_chance_and_at_best() -> None:
    alike = torch.ones(6, 3)
    apart = torch.eye(6)
    assert global_contrastive_loss(alike, alike, temperature=0.1).item() == pytest.approx(math.log(6))
    assert global_contrastive_loss(apart, apart, temperature=0.01).item() == pytest.approx(0, abs=1e-6)
    twice = apart[[0, 0, 1, 2]]
    ids = torch.tensor([0, 0, 1, 2])
    best = global_contrastive_loss(twice, twice, temperature=0.01, text_ids=ids)
    assert best.item() == pytest.approx(math.log(2) / 2, abs=1e-6)
    assert global_contrastive_loss(torch.ones(0, 3), torch.ones(0, 3), temperature=0.1).item() == 0


@few
@given(seed=st.integers(0, 2**31), batch=st.integers(1, 6))
def test_neither_order_nor_length_nor_names_matter(seed: int, batch: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    image, text = (torch.randn(batch, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    ids = torch.randint(3, (batch,), generator=generator)
    order = torch.randperm(batch, generator=generator)
    loss = global_contrastive_loss(image, text, temperature=0.2, text_ids=ids)
    others = (
        global_contrastive_loss(image[order], text[order], temperature=0.2, text_ids=ids[order]),
        global_contrastive_loss(7 * image, 0.1 * text, temperature=0.2, text_ids=ids),
        global_contrastive_loss(text, image, temperature=0.2, text_ids=ids),
        global_contrastive_loss(image, text, temperature=0.2, text_ids=40 - 9 * ids),
    )
    for other in others:
        torch.testing.assert_close(other, loss)


def test_gradients_by_finite_differences() -> None:
    image, text = pair(3, 2)
    ids = torch.tensor([0, 1, 0])
    assert torch.autograd.gradcheck(
        lambda a, b: global_contrastive_loss(a, b, temperature=0.5, text_ids=ids), (image, text)
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_float32(dtype: torch.dtype) -> None:
    image, text = (x.detach().to(dtype) for x in pair())
    loss = global_contrastive_loss(image, text, temperature=0.07)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, global_contrastive_loss(image.float(), text.float(), temperature=0.07))


def test_autocast_does_not_round_the_logits() -> None:
    image, text = (x.detach().float() for x in pair())
    expected = global_contrastive_loss(image, text, temperature=0.01)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(global_contrastive_loss(image, text, temperature=0.01), expected)


@pytest.mark.parametrize("texts", [None, TEXTS])
def test_compiles_as_one_graph(texts: list[int] | None) -> None:
    image, text = (x.detach().float().requires_grad_() for x in pair())
    ids = None if texts is None else torch.tensor(texts)

    def loss(image: Tensor, text: Tensor) -> Tensor:
        return global_contrastive_loss(image, text, temperature=0.1, text_ids=ids)

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    expected, actual = loss(image, text), compiled(image, text)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(torch.autograd.grad(actual, (image, text)), torch.autograd.grad(expected, (image, text)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": None}, "Exactly one of temperature and logit_scale .* temperature=None and logit_scale=None"),
        ({"logit_scale": 2.0}, r"Exactly one of .* got temperature=0.1 and logit_scale=2.0"),
        ({"temperature": 0.0}, "temperature must be positive and finite, got 0.0"),
        ({"temperature": None, "logit_scale": -1.0}, "logit_scale must be positive and finite, got -1.0"),
        ({"temperature": None, "logit_scale": math.inf}, "logit_scale must be positive and finite, got inf"),
        ({"temperature": None, "logit_scale": torch.ones(2)}, r"logit_scale must have one element, got shape \(2,\)"),
        ({"image": torch.ones(3)}, r"image must have shape \(B, D\), got shape \(3,\)"),
        ({"image": torch.ones(2, 3).long()}, "image must be of a floating dtype, got torch.int64"),
        ({"text": torch.ones(2, 3).long()}, "text must be of a floating dtype"),
        ({"text": torch.ones(2, 4)}, r"text must have the shape of image, \(2, 3\), got \(2, 4\). Project both"),
        ({"text": torch.ones(2, 3, device="meta")}, "text must be on the device of image"),
        ({"group": object()}, "group must be left out without gather=True"),
        ({"directions": "back"}, "directions must be one of 'both', 'image-to-text', 'text-to-image', got 'back'"),
        ({"text_ids": torch.ones(2)}, "text_ids must be of an integer dtype"),
        ({"text_ids": torch.ones(3).long()}, r"text_ids must hold one id per pair, shape \(2,\), got shape \(3,\)"),
    ],
)
def test_mistakes_are_named(change: dict, message: str) -> None:
    arguments = {"image": torch.ones(2, 3), "text": torch.ones(2, 3), "temperature": 0.1} | change
    with pytest.raises(ValueError, match=message):
        global_contrastive_loss(arguments.pop("image"), arguments.pop("text"), **arguments)
