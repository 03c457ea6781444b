"""Words and masked words of a batch of token ids, on the device that holds them.

Shape letters: B texts, N tokens, D width.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MASKED_SHARE = 0.15
"""Share of the tokens that are masked, as in BERT."""
IGNORED = -100
"""Target of a token that is not to be predicted; the default of ``cross_entropy``."""


class WordPieces(nn.Module):
    """Tells which tokens are special, and which go on with the word before them.

    Args:
        tokenizer: Of the text encoder. Pieces that go on begin with ``##``, as WordPiece writes them; without such
            pieces in its vocabulary every token is a word.
    """

    def __init__(self, tokenizer: Any) -> None:
        super().__init__()
        special, continues = torch.zeros(2, len(tokenizer), dtype=torch.bool)
        unknown = {tokenizer.unk_token_id}  # stands for a word
        special[[token for token in tokenizer.all_special_ids if token not in unknown]] = True
        for piece, token in tokenizer.get_vocab().items():
            continues[token] = piece.startswith("##")
        self.register_buffer("special", special, persistent=False)
        self.register_buffer("continues", continues, persistent=False)

    def word_ids(self, input_ids: Tensor, text_mask: Tensor) -> Tensor:
        """Numbers the words of each text, for :func:`moekit.contrastive.aggregate_word_pieces`.

        Returns:
            ``(B, N)``: from 0 on; -1 at special and padding tokens.
        """
        real = text_mask & ~self.special[input_ids]
        begins = real & ~self.continues[input_ids]
        return torch.where(real, begins.cumsum(dim=1) - 1, -1)


class MaskedWords(nn.Module):
    """Predicts masked tokens from their states, by the encoder's own token embeddings.

    Args:
        dim: Width of the states.
        tokenizer: Of the text encoder; its mask token, else its unknown token, stands in for what is masked.
    """

    def __init__(self, dim: int, tokenizer: Any) -> None:
        super().__init__()
        self.mask_token = tokenizer.unk_token_id if tokenizer.mask_token_id is None else tokenizer.mask_token_id
        self.transform = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.LayerNorm(dim))
        self.bias = nn.Parameter(torch.zeros(len(tokenizer)))

    def mask(self, input_ids: Tensor, maskable: Tensor) -> tuple[Tensor, Tensor]:
        """Masks tokens by chance.

        Args:
            input_ids: ``(B, N)``.
            maskable: ``(B, N)``, True at tokens of words.

        Returns:
            Token ids with the masked ones replaced, and the targets: what was masked, :data:`IGNORED` elsewhere.
        """
        masked = maskable & (torch.rand(input_ids.shape, device=input_ids.device) < MASKED_SHARE)
        targets = torch.where(masked, input_ids, IGNORED)
        return torch.where(masked, self.mask_token, input_ids), targets

    def forward(self, states: Tensor, embeddings: Tensor, targets: Tensor) -> Tensor:
        """Computes the mean cross entropy of the masked tokens; 0 where none is masked.

        Args:
            states: ``(B, N, D)``, of the masked text.
            embeddings: ``(V, D)``, of the vocabulary.
            targets: Of :meth:`mask`.
        """
        logits = self.transform(states) @ embeddings[: len(self.bias)].T + self.bias
        total = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED, reduction="sum")
        return total / (targets != IGNORED).sum().clamp(min=1)
