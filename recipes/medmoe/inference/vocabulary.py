"""Which words of texts a model does not know."""

from collections.abc import Sequence

from recipes.medmoe.data.unknown_words import UnknownWords, unknown_words
from recipes.medmoe.inference.run import Session
from recipes.medmoe.inference.session import ModelSession


def words_unknown_to(session: ModelSession, texts: Sequence[str]) -> UnknownWords | None:
    """Counts the words of texts that the tokenizer of a run does not know.

    Args:
        session: The model.
        texts: The texts.

    Returns:
        ``None`` of a released model, whose tokenizers cut unknown words into known pieces.
    """
    if not isinstance(session, Session):
        return None
    return unknown_words(texts, session.model.text_encoder.tokenizer, session.config.model.text_tokens)
