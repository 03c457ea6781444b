"""Words from word pieces: against a loop, with damage in the padding, and with static shapes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moekit.contrastive import aggregate_word_pieces
from tests.strategies import few


@few
@given(seed=st.integers(0, 2**31), pieces=st.integers(0, 7), how=st.sampled_from(["sum", "mean"]))
def test_words_are_those_of_a_loop(seed: int, pieces: int, how: str) -> None:
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(3, pieces, 2, generator=generator, dtype=torch.float64)
    word_ids = torch.randint(-1, 4, (3, pieces), generator=generator)
    states[word_ids < 0] = torch.nan
    words, mask = aggregate_word_pieces(states, word_ids, how=how)
    assert words.shape[1] == (max(int(word_ids.max()) + 1, 0) if pieces else 0)
    for text in range(3):
        for word in range(words.shape[1]):
            own = states[text, word_ids[text] == word]
            assert mask[text, word] == (len(own) > 0)
            expected = own.sum(0) / (max(len(own), 1) if how == "mean" else 1)
            torch.testing.assert_close(words[text, word], expected)


def test_a_given_number_of_words_pads_and_cuts() -> None:
    states = torch.arange(8.0).view(1, 4, 2)
    word_ids = torch.tensor([[0, 1, 1, 2]])
    words, mask = aggregate_word_pieces(states, word_ids, num_words=5)
    torch.testing.assert_close(words[0, :3], torch.tensor([[0.0, 1.0], [6.0, 8.0], [6.0, 7.0]]))
    assert mask.tolist() == [[True, True, True, False, False]]
    assert (words[0, 3:] == 0).all()
    shorter, shorter_mask = aggregate_word_pieces(states, word_ids, num_words=2)
    torch.testing.assert_close(shorter, words[:, :2])
    assert shorter_mask.all()


def test_gradients_reach_pieces_of_words_alone() -> None:
    states = torch.randn(1, 3, 2, requires_grad=True)
    words, _ = aggregate_word_pieces(states, torch.tensor([[-1, 0, 0]]), how="mean")
    words.sum().backward()
    torch.testing.assert_close(states.grad, torch.tensor([[[0.0, 0.0], [0.5, 0.5], [0.5, 0.5]]]))


def test_half_precision_is_summed_in_float32() -> None:
    states = torch.full((1, 300, 1), 1.01).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        words, _ = aggregate_word_pieces(states, torch.zeros(1, 300, dtype=torch.int32))
    assert words.dtype == torch.bfloat16
    torch.testing.assert_close(words.flatten(), (300 * states[0, 0].float()).bfloat16())


def test_a_given_number_of_words_compiles_as_one_graph() -> None:
    states, word_ids = torch.randn(2, 4, 3), torch.tensor([[-1, 0, 0, 1], [0, 1, 2, -1]])
    compiled = torch.compile(aggregate_word_pieces, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(
        tuple(compiled(states, word_ids, num_words=3)), tuple(aggregate_word_pieces(states, word_ids, num_words=3))
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"states": torch.ones(2, 3)}, r"states must have shape \(B, P, D\), got shape \(2, 3\)"),
        ({"states": torch.ones(2, 3, 1).long()}, "states must be of a floating dtype"),
        ({"word_ids": torch.ones(2, 3)}, "word_ids must be of an integer dtype"),
        ({"word_ids": torch.ones(2, 4).long()}, r"word_ids must have shape \(2, 3\), one id per piece .* got \(2, 4\)"),
        ({"word_ids": torch.ones(2, 3, device="meta").long()}, "word_ids must be on the device of states"),
        ({"how": "max"}, "how must be one of 'sum', 'mean', got 'max'"),
        ({"num_words": -1}, "num_words must be at least 0, got -1"),
    ],
)
def test_mistakes_are_named(change: dict, message: str) -> None:
    arguments = {"states": torch.ones(2, 3, 1), "word_ids": torch.zeros(2, 3).long()} | change
    with pytest.raises(ValueError, match=message):
        aggregate_word_pieces(arguments.pop("states"), arguments.pop("word_ids"), **arguments)
