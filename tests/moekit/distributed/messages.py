"""Errors of several ranks, and what their messages must say."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest


def message_of(call: Callable[..., Any], *arguments: Any, **options: Any) -> str:
    """Returns the message of the ``ValueError`` that a call raises."""
    with pytest.raises(ValueError, match=r"\S") as raised:
        call(*arguments, **options)
    return str(raised.value)


def other_messages(ranks: Sequence[Mapping[str, str]], expected: Mapping[str, str]) -> list[str]:
    """Returns the messages, by name and rank, that lack the text that is expected of them, and names that differ."""
    other = [str(sorted(messages.keys() ^ expected.keys())) for messages in ranks if messages.keys() != expected.keys()]
    return other + [
        f"rank {rank}, {name}: {messages.get(name)}"
        for rank, messages in enumerate(ranks)
        for name, text in expected.items()
        if text not in messages.get(name, "")
    ]
