"""From texts to token ids, with the word that each piece belongs to."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

NO_WORD = -1
"""Word of a special or padding token."""


class Tokens(NamedTuple):
    """Texts as token ids, padded on the right. B texts, P pieces of words.

    Attributes:
        input_ids: ``(B, P)``.
        attention_mask: ``(B, P)``, True for tokens of the text.
        word_ids: ``(B, P)``, which word of the text a piece belongs to, -1 for special and padding tokens.
        num_words: Words of the longest text. A number, so that no step has to wait for the device to know it.
    """

    input_ids: Tensor
    attention_mask: Tensor
    word_ids: Tensor
    num_words: int

    def to(self, device: torch.device) -> "Tokens":
        """Returns the same on another device."""
        input_ids, mask, word_ids = (field.to(device, non_blocking=True) for field in self[:3])
        return Tokens(input_ids, mask, word_ids, self.num_words)

    def rows(self, rows: slice) -> "Tokens":
        """Returns some of the texts, as wide as all of them."""
        return Tokens(self.input_ids[rows], self.attention_mask[rows], self.word_ids[rows], self.num_words)


class TokenIds(NamedTuple):
    """One text: ids of its pieces and the word of each."""

    input_ids: list[int]
    word_ids: list[int]


def token_ids(text: str, tokenizer: Any, limit: int) -> TokenIds:
    """Cuts a text into at most ``limit`` tokens, special ones included."""
    encoded = tokenizer(text, truncation=True, max_length=limit)
    words = [NO_WORD if word is None else word for word in _word_ids(encoded, tokenizer)]
    return TokenIds(list(encoded["input_ids"]), words)


def pad_tokens(texts: Sequence[TokenIds], pad_id: int) -> Tokens:
    """Stacks texts, padded to the longest."""
    longest = max(1, *(len(text.input_ids) for text in texts))
    input_ids = torch.full((len(texts), longest), pad_id, dtype=torch.int64)
    word_ids = torch.full((len(texts), longest), NO_WORD, dtype=torch.int64)
    mask = torch.zeros(len(texts), longest, dtype=torch.bool)
    for row, text in enumerate(texts):
        length = len(text.input_ids)
        input_ids[row, :length] = torch.tensor(text.input_ids, dtype=torch.int64)
        word_ids[row, :length] = torch.tensor(text.word_ids, dtype=torch.int64)
        mask[row, :length] = True
    return Tokens(input_ids, mask, word_ids, int(word_ids.max()) + 1)


def tokenize(texts: Sequence[str], tokenizer: Any, limit: int) -> Tokens:
    """Tokenizes texts as one batch.

    Args:
        texts: At least one.
        tokenizer: A fast tokenizer of transformers.
        limit: Longest text, in tokens; the rest is cut off.

    Raises:
        ValueError: If there is no text, or the tokenizer does not say which word a piece belongs to.
    """
    if not texts:
        raise ValueError("texts must hold at least one text, got none.")
    return pad_tokens([token_ids(text, tokenizer, limit) for text in texts], tokenizer.pad_token_id)


def words_of(text: str, tokenizer: Any, limit: int) -> list[str]:
    """Returns the words of a text that the model reads, those cut off left out."""
    encoded = tokenizer(text, truncation=True, max_length=limit)
    words = _word_ids(encoded, tokenizer)
    last = max((word for word in words if word is not None), default=-1)
    return [text[slice(*encoded.word_to_chars(word))] for word in range(last + 1)]


def _word_ids(encoded: Any, tokenizer: Any) -> list[int | None]:
    if not encoded.is_fast:
        raise ValueError(
            f"the tokenizer {type(tokenizer).__name__} does not say which word a token belongs to: "
            "use a text encoder with a fast tokenizer (a tokenizer.json)."
        )
    return encoded.word_ids()
