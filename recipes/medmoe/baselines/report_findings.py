"""Which findings reports name and do not deny, from their tokens: the soft labels of MedCLIP's objective.

Shape letters: B texts, P pieces of words, C findings.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from recipes.data.pairs import PairSource, PairStream
from recipes.medmoe.data.tokens import NO_WORD, Tokens
from recipes.medmoe.explain.word_maps import SMALL_WORDS

DENIALS = ("no", "not", "without", "absent", "denies", "negative")
"""Words that deny a finding named after them in the same sentence."""
REACH = 6
"""How many tokens a denial reaches."""
SENTENCE_ENDS = (".", ";", "!", "?")
MOST_WORDS = 64
"""How many words stand for findings where none are named."""
SHORTEST = 4
"""Letters of such a word at least."""


class ReportFindings(nn.Module):
    """Tells which findings a tokenized report names and does not deny, on the device that holds it.

    A finding is named where its words stand in the report one after the other, whole words only and without regard to
    grammar. It is denied by one of :data:`DENIALS` at most :data:`REACH` tokens before it in the same sentence, a small
    part of NegEx (https://doi.org/10.1006/jbin.2001.1029).

    Args:
        names: The ``C`` findings.
        tokenizer: Of the text encoder.

    Raises:
        ValueError: If there is no name, or the tokenizer knows no word of one.
    """

    def __init__(self, names: Sequence[str], tokenizer: Any) -> None:
        super().__init__()
        self.names = tuple(names)
        if not self.names:
            raise ValueError("the reports have no words to stand for findings: name the findings (--findings).")
        self.pieces = tuple(tuple(_pieces(name, tokenizer)) for name in self.names)
        unknown = [name for name in self.names if not _is_known(name, tokenizer)]
        if unknown:
            raise ValueError(
                f"findings must be named as the reports name them, but the tokenizer knows no word of "
                f"{', '.join(map(repr, unknown))} (--findings)."
            )
        for buffer, words in (("denials", DENIALS), ("ends", SENTENCE_ENDS)):
            known = [own[0] for word in words if len(own := _pieces(word, tokenizer)) == 1]
            known = [piece for piece in known if piece != tokenizer.unk_token_id]
            self.register_buffer(buffer, torch.tensor(known, dtype=torch.int64), persistent=False)

    @torch.no_grad()
    def forward(self, tokens: Tokens) -> Tensor:
        """Returns ``(B, C)``: 1 where a report names a finding and does not deny it, else 0."""
        ids, words = tokens.input_ids, tokens.word_ids
        places = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        denied = _last(torch.isin(ids, self.denials), places)
        ended = _last(torch.isin(ids, self.ends), places)
        is_denied = (denied >= 0) & (denied > ended) & (places - denied <= REACH)
        columns = [(_starts(ids, words, pieces) & ~is_denied).any(1) for pieces in self.pieces]
        return torch.stack(columns, dim=1).float()


def findings_of(source: PairSource, named: Sequence[str], tokenizer: Any) -> list[str]:
    """Returns the findings by which images and reports are matched.

    Args:
        source: The pairs.
        named: Those that were given. Without any they are those of drawn data, or of other data the words of at
            least :data:`SHORTEST` letters that are in at least two training reports and at most half of them, the most
            frequent :data:`MOST_WORDS`; those that the tokenizer does not know are left out.
        tokenizer: Of the text encoder.
    """
    if named:
        return list(named)
    train = source.train
    drawn = sorted({name for name in getattr(train, "findings", ()) if name})
    if drawn:
        return [name for name in drawn if _is_known(name, tokenizer)]
    texts = train.first_texts(20_000) if isinstance(train, PairStream) else [text for text in train.texts if text]
    counts = Counter(word for text in texts for word in {_letters(word) for word in text.lower().split()})
    frequent = [
        (count, word)
        for word, count in counts.items()
        if 2 <= count <= len(texts) / 2 and len(word) >= SHORTEST and word not in SMALL_WORDS and word not in DENIALS
    ]
    ordered = [word for _, word in sorted(frequent, key=lambda one: (-one[0], one[1]))]
    return [word for word in ordered if _is_known(word, tokenizer)][:MOST_WORDS]


def _is_known(name: str, tokenizer: Any) -> bool:
    return any(piece != tokenizer.unk_token_id for piece in _pieces(name, tokenizer))


def _letters(word: str) -> str:
    """Returns a word without what is around its letters; empty if there is something else among them."""
    stripped = word.strip(".,;:!?()[]\"'")
    return stripped if stripped.isalpha() else ""


def _pieces(text: str, tokenizer: Any) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _last(marked: Tensor, places: Tensor) -> Tensor:
    """Returns the last marked place up to each place, ``(B, P)``; -1 before the first."""
    return torch.where(marked, places, -1).cummax(dim=1).values


def _starts(ids: Tensor, words: Tensor, pieces: Sequence[int]) -> Tensor:
    """Tells where the pieces stand one after the other as whole words, ``(B, P)``."""
    is_finding = torch.zeros_like(ids, dtype=torch.bool)
    count = ids.shape[1] - len(pieces) + 1
    if count < 1:
        return is_finding
    same = torch.ones_like(ids[:, :count], dtype=torch.bool)
    for offset, piece in enumerate(pieces):
        same &= ids[:, offset : offset + count] == piece
    none = torch.full_like(words[:, :1], NO_WORD)
    framed = torch.cat([none, words, none], dim=1)
    first, before = framed[:, 1 : count + 1], framed[:, :count]
    last, after = framed[:, len(pieces) : len(pieces) + count], framed[:, len(pieces) + 1 : len(pieces) + 1 + count]
    is_finding[:, :count] = same & (first != before) & (last != after)
    return is_finding
