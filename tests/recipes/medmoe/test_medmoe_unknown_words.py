"""Words that a tokenizer does not know are counted, named and warned about."""

import pytest

from recipes.medmoe.data.unknown_words import unknown_words
from recipes.shared.encoders.text import load_text_encoder


@pytest.fixture(scope="module")
def tokenizer():
    texts = ["a round mass", "a flat mass", "no round mass", "no flat mass"]
    return load_text_encoder("tiny-bert", weights="random", texts=texts).tokenizer


def test_unknown_words_are_counted_over_different_texts(tokenizer):
    counted = unknown_words(
        ["a Spiculated mass", "a spiculated mass", "a spiculated mass", "no fibroadenoma"], tokenizer, 48
    )
    assert (counted.words, counted.count) == (8, 3)
    assert counted.unknown == ("spiculated", "fibroadenoma")
    assert counted.share == pytest.approx(3 / 8)
    assert "warning: 38% of the words of the prompts (3 of 8) are unknown" in counted.in_words("prompts")
    assert counted.to_json("prompts")["in_words"].endswith("spiculated, fibroadenoma")


def test_known_texts_have_no_warning(tokenizer):
    known = unknown_words(["a round mass", "no flat mass"], tokenizer, 48)
    assert known.share == 0
    assert known.in_words("text") == "the tokenizer knows all words of the text"


def test_words_beyond_the_limit_do_not_count(tokenizer):
    assert unknown_words(["a mass spiculated"], tokenizer, 4).count == 0  # two special tokens, two words
    assert unknown_words([""], tokenizer, 48).share == 1
