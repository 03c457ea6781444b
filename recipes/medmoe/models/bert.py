"""The text tower of a release: a BERT whose configuration and tokenizer lie in a folder or in a hub's repository."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoTokenizer, BertModel

from recipes.medmoe.data.tokens import NO_WORD, TokenIds, Tokens, pad_tokens, token_ids, words_of
from recipes.shared.encoders.hub import loading

THREE_LAYERS = (1, 2, -1)
"""Hidden states that MedCLIP and FLAIR average: of the first two layers and the last; 0 are the embeddings."""


def remedy(hub_id: str) -> str:
    """Returns what an error says to do where a hub cannot be reached."""
    return (
        f"The release names {hub_id} of a hub: give a folder with its config.json and its tokenizer (--text-tower; "
        "--tokenizer where the tokenizer lies elsewhere)."
    )


def build_bert(hub_id: str, text_tower: Path | None, *, pooler: bool) -> BertModel:
    """Builds a BERT with random weights.

    Args:
        hub_id: What the release names.
        text_tower: Folder with its ``config.json``, instead.
        pooler: Whether it has the layer after its first token.

    Raises:
        RuntimeError: If the configuration cannot be loaded.
    """
    with loading(f"the configuration of the text tower {hub_id}", remedy(hub_id)):
        config = AutoConfig.from_pretrained(text_tower or hub_id, trust_remote_code=False)
    return BertModel(config, add_pooling_layer=pooler)


def load_tokenizer(hub_id: str, text_tower: Path | None, tokenizer: Path | None) -> Any:
    """Loads a tokenizer: of its folder, else of the text tower's, else of the hub.

    Raises:
        RuntimeError: If it cannot be loaded.
    """
    with loading(f"the tokenizer {hub_id}", remedy(hub_id)):
        return AutoTokenizer.from_pretrained(tokenizer or text_tower or hub_id, trust_remote_code=False)


class BertTexts:
    """Texts as a BERT's tokens.

    Args:
        tokenizer: A fast tokenizer.
        limit: Longest text, in tokens.
        padded: Whether every text is padded to ``limit``; else to the longest of a call.
    """

    def __init__(self, tokenizer: Any, limit: int, *, padded: bool = False) -> None:
        self.tokenizer, self.limit, self.padded = tokenizer, limit, padded

    def tokenize(self, texts: Sequence[str]) -> Tokens:
        """Tokenizes texts."""
        tokens = [token_ids(text, self.tokenizer, self.limit) for text in texts]
        if self.padded:
            return padded_to(tokens, self.limit, self.tokenizer.pad_token_id)
        return pad_tokens(tokens, self.tokenizer.pad_token_id)

    def words(self, text: str) -> list[str]:
        """Returns the words that are left of a text."""
        return words_of(text, self.tokenizer, self.limit)


def padded_to(texts: Sequence[TokenIds], length: int, pad_id: int) -> Tokens:
    """Stacks texts, padded to a given length."""
    tokens = pad_tokens(texts, pad_id)
    missing = length - tokens.input_ids.shape[1]

    def wider(field: Tensor, value: int) -> Tensor:
        return nn.functional.pad(field, (0, missing), value=value)

    ids, mask, words = wider(tokens.input_ids, pad_id), wider(tokens.attention_mask, 0), wider(tokens.word_ids, NO_WORD)
    return Tokens(ids, mask, words, tokens.num_words)


def layer_mean(model: BertModel, tokens: Tokens, layers: Sequence[int] = THREE_LAYERS) -> Tensor:
    """Computes the mean of some hidden states of every token, ``(B, P, D)``."""
    output = model(tokens.input_ids, attention_mask=tokens.attention_mask.long(), output_hidden_states=True)
    return torch.stack([output.hidden_states[layer] for layer in layers]).mean(0)
