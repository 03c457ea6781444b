"""Words that a tokenizer does not know: to the model they are all one word, so texts that differ in them are equal."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from recipes.medmoe.data.tokens import words_of

_SHOWN = 8
"""Unknown words that are listed in a message."""


@dataclass(frozen=True)
class UnknownWords:
    """Which words of some texts are unknown.

    Attributes:
        words: How many words the texts have, up to the longest text that the model reads.
        count: How many of these are unknown.
        unknown: The unknown ones, each once, in lower case, in their order.
    """

    words: int
    count: int
    unknown: tuple[str, ...]

    @property
    def share(self) -> float:
        """Returns the share of unknown words; 1 for texts without any word."""
        return self.count / self.words if self.words else 1.0

    def in_words(self, what: str) -> str:
        """Says how many words are unknown, with a warning if there are any.

        Args:
            what: What the texts are, such as ``"prompts"``.
        """
        if not self.count:
            return f"the tokenizer knows all words of the {what}"
        listed = ", ".join(self.unknown[:_SHOWN]) + (", ..." if len(self.unknown) > _SHOWN else "")
        return (
            f"warning: {self.share:.0%} of the words of the {what} ({self.count} of {self.words}) are unknown to the "
            f"tokenizer, and the model cannot tell these apart: {listed}"
        )

    def to_json(self, what: str) -> dict[str, Any]:
        """Returns plain types: ``words``, ``count``, ``share``, ``unknown`` and ``in_words``."""
        return {
            "words": self.words,
            "count": self.count,
            "share": self.share,
            "unknown": list(self.unknown),
            "in_words": self.in_words(what),
        }


def unknown_words(texts: Sequence[str], tokenizer: Any, limit: int) -> UnknownWords:
    """Counts the words of texts of which the tokenizer makes its token for unknown words.

    Tokenizers that cut every word into known pieces (of bytes, or of letters) know all words.

    Args:
        texts: The texts; equal ones count once.
        tokenizer: A fast tokenizer of transformers.
        limit: Longest text, in tokens; the rest is cut off.
    """
    total, unknown = 0, []
    for text in dict.fromkeys(texts):
        encoded = tokenizer(text, truncation=True, max_length=limit)
        words = words_of(text, tokenizer, limit)
        total += len(words)
        places = zip(encoded["input_ids"], encoded.word_ids(), strict=True)
        lost = sorted({word for token, word in places if word is not None and token == tokenizer.unk_token_id})
        unknown += [words[word].lower() for word in lost]
    return UnknownWords(total, len(unknown), tuple(dict.fromkeys(unknown)))
