"""The word-level loss within a text: each word against the other words of its own text.

Shape letters: B pairs, M regions of an image, N words of a text, D width.
"""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from moekit.checks import check_choice
from moekit.contrastive._checks import check_pairs, check_regions_and_words, check_scale
from moekit.contrastive.attention import Similarity, attention_maps, prepared
from moekit_kernels.autocast import autocast, no_autocast


class WordAlignment(NamedTuple):
    """Output of :func:`word_alignment_loss`.

    Attributes:
        loss: Scalar.
        attention: Attention of each text's words over its own image, shape (B, N, M), as of
            :func:`attention_maps` without ``word_softmax``; None unless ``need_attention``.
    """

    loss: Float[Tensor, ""]
    attention: Float[Tensor, "B N M"] | None


def word_alignment_loss(
    regions: Float[Tensor, "B M D"],
    words: Float[Tensor, "B N D"],
    word_mask: Bool[Tensor, "B N"],
    *,
    temperature: float,
    aggregation: Literal["mean", "sum"] = "mean",
    similarity: Similarity = "dot",
    region_mask: Bool[Tensor, "B M"] | None = None,
    need_attention: bool = False,
) -> WordAlignment:
    """Aligns each word with the regions that it attends to, against the other words of its text.

    ``-log softmax_j(cos(c_i, t_j) / τ)`` at ``j = i``, where the context of word ``i`` is
    ``c_i = Σ_m softmax_m(t_i·v_m / τ) v_m``; ``ln N`` where all cosines are equal. No other image takes part, there is
    one direction, and a word that a text repeats is a negative of itself. :func:`local_contrastive_loss` contrasts
    images with texts.

    Texts without words do not count: the loss is the mean over the others, 0 if there are none. Softmaxes are
    computed in float32 (float64 for float64 input), also under autocast, matrix products in the dtype of the input
    or of autocast.

    Args:
        regions: Regions, shape (B, M, D).
        words: Words, shape (B, N, D), e.g. of :func:`aggregate_word_pieces`.
        word_mask: True at words, shape (B, N); values elsewhere never matter.
        temperature: τ, which divides. MedMoE does not print its value.
        aggregation: Over the losses of a text's words, ``"mean"``; or ``"sum"``, as printed, which favours long texts.
        similarity: Of words and regions in the attention, ``"dot"`` as printed, or ``"cosine"``: see
            :func:`attention_maps`.
        region_mask: True at regions that count, shape (B, M); values elsewhere never matter. All count by default.
        need_attention: Whether to return attention maps.

    Returns:
        Loss in nats, and attention.

    Raises:
        ValueError: If a shape, dtype or device does not fit, or a number is out of range.

    Reference:
        MedMoE, section 4.4, its local contrastive loss; the token-wise alignment of MGCA,
        https://arxiv.org/abs/2210.06044, in one direction, with a softmax over regions for attention.

    Example:
        >>> regions = 4 * torch.eye(4).view(2, 2, 4)  # two images of two regions each
        >>> mask = torch.ones(2, 2, dtype=torch.bool)
        >>> bool(word_alignment_loss(regions, regions, mask, temperature=0.1).loss < 1e-4)
        True
    """
    check_choice("aggregation", aggregation, ("mean", "sum"))
    check_regions_and_words(regions, words, word_mask, "B, N, D")
    check_pairs(regions, words)
    check_scale("temperature", temperature)
    attention = attention_maps(
        regions,
        words,
        word_mask,
        temperature=1 / temperature,
        word_softmax=False,
        similarity=similarity,
        region_mask=region_mask,
    )
    regions, words = prepared(regions, words, word_mask, region_mask, similarity)
    loss = _within_texts(attention, regions, words, word_mask, temperature, aggregation)
    return WordAlignment(loss, attention if need_attention else None)


def _within_texts(
    attention: Float[Tensor, "B N M"],
    regions: Float[Tensor, "B M D"],
    words: Float[Tensor, "B N D"],
    word_mask: Bool[Tensor, "B N"],
    temperature: float,
    aggregation: str,
) -> Float[Tensor, ""]:
    """Computes the mean over texts with words of the mean or sum of their words' cross entropies."""
    regions = autocast(regions)
    with no_autocast(regions.device.type):
        contexts = (attention.to(regions.dtype) @ regions).to(attention.dtype)
        words = F.normalize(words.to(attention.dtype), dim=2)
        logits = F.normalize(contexts, dim=2) @ words.mT / temperature
        logits = logits.masked_fill(~word_mask.unsqueeze(1), torch.finfo(logits.dtype).min)
        own = logits.log_softmax(dim=2).diagonal(dim1=1, dim2=2)
        per_text = -torch.where(word_mask, own, 0.0).sum(dim=1)
        count = word_mask.sum(dim=1)
        if aggregation == "mean":
            per_text = per_text / count.clamp(min=1)
        return per_text.sum() / (count > 0).sum().clamp(min=1)
