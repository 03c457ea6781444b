"""From the word pieces of a tokenizer to words.

Shape letters: B texts, P word pieces of a text, N words of a text, D width.
"""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from moekit.checks import check_choice, check_floating, check_integer, check_rank, check_same_device
from moekit_kernels.autocast import no_autocast


class WordStates(NamedTuple):
    """Words of a batch of texts.

    Attributes:
        words: States, shape (B, N, D); zeros where there is no word.
        mask: True at words, shape (B, N).
    """

    words: Float[Tensor, "B N D"]
    mask: Bool[Tensor, "B N"]


def aggregate_word_pieces(
    states: Float[Tensor, "B P D"],
    word_ids: Int[Tensor, "B P"],
    *,
    how: Literal["sum", "mean"] = "sum",
    num_words: int | None = None,
) -> WordStates:
    """Sums or averages the states of the pieces of each word.

    Sums are taken in float32 (float64 for float64 states). Values at pieces of no word never
    matter, NaN included.

    Args:
        states: States of word pieces, shape (B, P, D).
        word_ids: Word of each piece, from 0 on, shape (B, P); -1 for special and padding tokens: the
            ``BatchEncoding.word_ids()`` of a fast tokenizer, with -1 for None.
        how: ``"sum"``, as GLoRIA does, or ``"mean"``.
        num_words: N. By default the largest of the batch, which reads one number back from the device. A
            given number makes shapes static; words from there on are left out.

    Returns:
        Words, in the dtype of ``states``, and their mask. An id without pieces is no word.

    Raises:
        ValueError: If the shape, dtype or device of an argument does not fit, or ``num_words`` is negative.

    Reference:
        GLoRIA, section 3.1, https://openaccess.thecvf.com/content/ICCV2021/html/Huang_GLoRIA_ICCV_2021_paper.html

    Example:
        >>> states = torch.tensor([[[9.0], [1.0], [2.0], [4.0], [9.0]]])
        >>> words, mask = aggregate_word_pieces(states, torch.tensor([[-1, 0, 0, 1, -1]]))
        >>> words.flatten(), mask.flatten()
        (tensor([3., 4.]), tensor([True, True]))
    """
    check_rank("states", states, 3, "B, P, D")
    check_floating("states", states)
    check_integer("word_ids", word_ids)
    check_choice("how", how, ("sum", "mean"))
    if word_ids.shape != states.shape[:2]:
        raise ValueError(
            f"word_ids must have shape {tuple(states.shape[:2])}, one id per piece of states, "
            f"got {tuple(word_ids.shape)}."
        )
    check_same_device("word_ids", word_ids, "states", states)
    if num_words is None:
        num_words = max(int(word_ids.max()) + 1, 0) if word_ids.numel() else 0
    elif num_words < 0:
        raise ValueError(f"num_words must be at least 0, got {num_words}.")
    # A product with zeros and ones rather than scatter_add: the same sum in every run on a GPU too.
    is_piece = word_ids.unsqueeze(1) == torch.arange(num_words, device=word_ids.device).unsqueeze(1)
    count = is_piece.sum(dim=2)
    dtype = torch.promote_types(states.dtype, torch.float32)
    weights = is_piece.to(dtype)
    if how == "mean":
        weights = weights / count.clamp(min=1).unsqueeze(2)
    with no_autocast(states.device.type):
        words = weights @ torch.where((word_ids >= 0).unsqueeze(2), states, 0.0).to(dtype)
    return WordStates(words.to(states.dtype), count > 0)
