"""The local contrastive loss of GLoRIA: images against texts, through the regions that each word attends to.

Shape letters: B pairs, M regions of an image, N words of a text, D width.
"""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from moekit.checks import check_choice
from moekit.contrastive._checks import check_pairs, check_regions_and_words, check_scales, check_text_ids
from moekit.contrastive._positives import cross_entropy_to_all, equal_ids
from moekit.contrastive.attention import Similarity, attention_maps
from moekit.contrastive.scores import local_scores

GLORIA_TEMPERATURES = (4.0, 5.0, 10.0)


class LocalContrast(NamedTuple):
    """Output of :func:`local_contrastive_loss`.

    Attributes:
        loss: Scalar.
        scores: Scores of images (rows) with texts, shape (B, B), as of :func:`local_scores`.
        attention: Attention of each text's words over its own image, shape (B, N, M), as of
            :func:`attention_maps`; None unless ``need_attention``.
    """

    loss: Float[Tensor, ""]
    scores: Float[Tensor, "B B"]
    attention: Float[Tensor, "B N M"] | None


def local_contrastive_loss(
    regions: Float[Tensor, "B M D"],
    words: Float[Tensor, "B N D"],
    word_mask: Bool[Tensor, "B N"],
    *,
    temperatures: tuple[float | Float[Tensor, ""], float, float] = GLORIA_TEMPERATURES,
    aggregation: Literal["mean", "sum"] = "mean",
    word_softmax: bool = True,
    similarity: Similarity = "dot",
    region_mask: Bool[Tensor, "B M"] | None = None,
    text_ids: Int[Tensor, "B"] | None = None,
    chunk_size: int | None = None,
    need_attention: bool = False,
) -> LocalContrast:
    """Contrasts images with texts through the regions that each word attends to, as GLoRIA does.

    ``(CE(τ3 Z) + CE(τ3 Zᵀ)) / 2`` with ``Z = local_scores(regions, words)``: each image against all texts and each
    text against all images; ``ln B`` where all scores are equal. Memory is that of the gradients and of one chunk of
    texts.

    A text without words counts neither as a row nor as a column, and nor does its image: the loss is that of
    the other pairs, 0 if there are none. Softmaxes are computed in float32 (float64 for float64 input), also
    under autocast, matrix products in the dtype of the input or of autocast.

    Args:
        regions: Regions, shape (B, M, D).
        words: Words, shape (B, N, D), e.g. of :func:`aggregate_word_pieces`.
        word_mask: True at words, shape (B, N); values elsewhere never matter.
        temperatures: GLoRIA's ``temp1`` (attention), ``temp2`` (words) and ``temp3`` (scores), which multiply.
            The first may be a tensor of no dimension, which then gets its gradient.
        aggregation: Over the exponentials of words: ``"mean"``; or ``"sum"``, as in GLoRIA, which favours long texts.
        word_softmax: Whether words compete for a region, as in GLoRIA's code; False is the attention of its paper.
        similarity: ``"dot"``, as in GLoRIA, or ``"cosine"``: see :func:`attention_maps`.
        region_mask: True at regions that count, shape (B, M); values elsewhere never matter. All count by default.
        text_ids: Equal ids mark equal texts, shape (B,), all of which are positives with equal weight. By default
            every text is different.
        chunk_size: Texts at a time; by default as many as fit 128 MiB.
        need_attention: Whether to return attention maps.

    Returns:
        Loss in nats, scores and attention.

    Raises:
        ValueError: If a shape, dtype or device does not fit, or a number is out of range.
        RuntimeError: When derivatives are taken as :func:`local_scores` refuses them.

    Reference:
        GLoRIA, equations 4 to 8, https://openaccess.thecvf.com/content/ICCV2021/html/Huang_GLoRIA_ICCV_2021_paper.html,
        which adds the directions (twice this) and the words. :func:`word_alignment_loss` contrasts words within a text.

    Example:
        >>> regions = 4 * torch.eye(4).view(2, 2, 4)  # two images of two regions each
        >>> mask = torch.ones(2, 2, dtype=torch.bool)
        >>> contrast = local_contrastive_loss(regions, regions, mask, need_attention=True)
        >>> bool(contrast.loss < 1e-4), contrast.attention.shape
        (True, torch.Size([2, 2, 2]))
    """
    check_choice("aggregation", aggregation, ("mean", "sum"))
    check_regions_and_words(regions, words, word_mask, "B, N, D")
    check_pairs(regions, words)
    check_scales("temperatures", temperatures, "attention, words, scores")
    scores = local_scores(
        regions,
        words,
        word_mask,
        temperatures=temperatures[:2],
        aggregation=aggregation,
        word_softmax=word_softmax,
        similarity=similarity,
        region_mask=region_mask,
        chunk_size=chunk_size,
    )
    loss = _symmetric_loss(scores * temperatures[2], word_mask.any(dim=1), text_ids)
    if not need_attention:
        return LocalContrast(loss, scores, None)
    attention = attention_maps(
        regions,
        words,
        word_mask,
        temperature=temperatures[0],
        word_softmax=word_softmax,
        similarity=similarity,
        region_mask=region_mask,
    )
    return LocalContrast(loss, scores, attention)


def _symmetric_loss(
    logits: Float[Tensor, "B B"], has_words: Bool[Tensor, "B"], text_ids: Int[Tensor, "B"] | None
) -> Float[Tensor, ""]:
    """Computes the mean of both directions over the pairs that have words."""
    if text_ids is None:
        text_ids = torch.arange(len(logits), device=logits.device)
    else:
        check_text_ids(text_ids, len(logits), logits, "regions")
    positives = equal_ids(text_ids, text_ids) & has_words.unsqueeze(1) & has_words
    to_text = cross_entropy_to_all(logits, positives, has_words)
    to_image = cross_entropy_to_all(logits.T, positives, has_words)
    return (to_text + to_image) / 2
