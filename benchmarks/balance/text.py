"""Text that ships with Python: the help topics of ``pydoc``, prose and grammar of the language reference."""

from pydoc_data.topics import topics  # pyright: ignore[reportMissingTypeStubs]

import torch
from torch import Tensor

HELD_OUT = 0.1
"""Share of the text, at its end, that is kept for validation."""


def read_text() -> tuple[Tensor, Tensor]:
    """Returns the bytes to train on and those to validate on, ``(N,)`` each."""
    text = "\n\n".join(topics[name] for name in sorted(topics)).encode()
    values = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
    split = int(len(values) * (1 - HELD_OUT))
    return values[:split], values[split:]


def windows(text: Tensor, starts: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Cuts sequences out of a text.

    Args:
        text: ``(N,)``.
        starts: ``(B,)`` first places.
        length: Of a sequence, ``S``.

    Returns:
        Sequences ``(B, S)``, and the same one place later.
    """
    places = starts[:, None] + torch.arange(length + 1)
    cut = text[places]
    return cut[:, :-1], cut[:, 1:]


def random_starts(text: Tensor, batch_size: int, length: int, generator: torch.Generator) -> Tensor:
    """Returns first places ``(B,)``, drawn evenly."""
    return torch.randint(len(text) - length, (batch_size,), generator=generator)
