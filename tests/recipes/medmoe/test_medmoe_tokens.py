"""Tokens, and the words that they belong to."""

import pytest
import torch
from transformers import PreTrainedTokenizer

from recipes.medmoe.data.tokens import NO_WORD, tokenize, words_of
from recipes.shared.encoders.text import load_text_encoder

TEXTS = ["Small kidney stone on the left.", "No kidney stone, no cyst."]


@pytest.fixture(scope="module")
def tokenizer():
    return load_text_encoder("tiny-bert", texts=TEXTS * 2).tokenizer


def test_padding_belongs_to_no_word_and_is_masked(tokenizer):
    tokens = tokenize([TEXTS[0], "cyst"], tokenizer, 20)
    assert tokens.attention_mask[0].all()
    length = int(tokens.attention_mask[1].sum())
    assert 0 < length < tokens.input_ids.shape[1]
    assert (tokens.word_ids[1, length:] == NO_WORD).all()
    assert (tokens.input_ids[1, length:] == tokenizer.pad_token_id).all()


def test_the_words_are_those_of_the_word_ids(tokenizer):
    tokens = tokenize([TEXTS[1]], tokenizer, 20)
    words = words_of(TEXTS[1], tokenizer, 20)
    assert words == ["No", "kidney", "stone", ",", "no", "cyst", "."]
    assert tokens.word_ids[0].max() == len(words) - 1
    stones = [tokens.input_ids[0, place] for place in torch.where(tokens.word_ids[0] == 2)[0]]
    assert tokenizer.decode(stones).strip().lower() == "stone"


def test_what_is_cut_off_is_no_word(tokenizer):
    cut = words_of(TEXTS[0], tokenizer, 4)
    assert cut == words_of(TEXTS[0], tokenizer, 20)[: len(cut)]
    assert len(cut) <= 4
    assert tokenize([TEXTS[0]], tokenizer, 4).input_ids.shape == (1, 4)


def test_no_text_is_an_error(tokenizer):
    with pytest.raises(ValueError, match="at least one text, got none"):
        tokenize([], tokenizer, 5)


def test_a_slow_tokenizer_is_refused():
    class Slow(PreTrainedTokenizer):
        vocab_size = 3
        model_input_names = ("input_ids", "attention_mask")

        def get_vocab(self):
            return {"a": 0, "b": 1, "<pad>": 2}

        def _tokenize(self, text, **_):
            return list(text)

        def _convert_token_to_id(self, token):
            return self.get_vocab().get(token, 2)

    with pytest.raises(ValueError, match="Slow does not say which word a token belongs to"):
        tokenize(["ab"], Slow(), 5)
