"""The local contrastive loss of GLoRIA: images against texts, through the regions that each word attends to.

Shape letters: B pairs, M regions of an image, N words of a text, D width.
"""

from typing import Literal, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from moekit.checks import check_choice
from moekit.collectives import all_gather_with_gradient
from moekit.contrastive._checks import check_pairs, check_regions_and_words, check_scales, check_text_ids
from moekit.contrastive._positives import cross_entropy_to_all, equal_ids
from moekit.contrastive.attention import Similarity, attention_maps
from moekit.contrastive.scores import local_scores

GLORIA_TEMPERATURES = (4.0, 5.0, 10.0)


class LocalContrast(NamedTuple):
    """Output of :func:`local_contrastive_loss`.

    Attributes:
        loss: Scalar.
        scores: Scores of images (rows) with texts, shape (B, B), as of :func:`local_scores`; with the texts of all
            ranks where they were gathered.
        attention: Attention of each text's words over its own image, shape (B, N, M), as of
            :func:`attention_maps`; None unless ``need_attention``.
    """

    loss: Float[Tensor, ""]
    scores: Float[Tensor, "B texts"]
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
    gather: bool = False,
    group: dist.ProcessGroup | None = None,
) -> LocalContrast:
    """Contrasts images with texts through the regions that each word attends to, as GLoRIA does.

    ``(CE(τ3 Z) + CE(τ3 Zᵀ)) / 2`` with ``Z = local_scores(regions, words)``: each image against all texts and each
    text against all images; ``ln B`` where all scores are equal. Memory is that of the gradients and of one chunk of
    texts.

    A text without words counts neither as a row nor as a column, and nor does its image: the loss is that of
    the other pairs, 0 if there are none. Softmaxes are computed in float32 (float64 for float64 input), also
    under autocast, matrix products in the dtype of the input or of autocast.

    With ``gather``, each rank's loss is of its own images against the texts of all ranks and of its own texts against
    the images of all ranks, which are gathered with gradients: B·M·D and B·N·D numbers of every rank. The mean over
    ranks is the loss of the whole batch, and the gradients that DDP averages are those of the whole batch. A rank
    computes two scores of B rows and all columns, so that its work grows with the number of ranks.

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
        gather: Whether to compare with the pairs of all ranks; without a process group the same as not.
        group: Process group to gather over; the default group if None.

    Returns:
        Loss in nats, scores and attention.

    Raises:
        ValueError: If a shape, dtype or device does not fit, a number is out of range, ``group`` is given without
            ``gather``, or ranks hold batches of different size.
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
    if group is not None and not gather:
        raise ValueError("group must be left out without gather=True: nothing is compared over ranks.")
    if text_ids is not None:
        check_text_ids(text_ids, len(regions), regions, "regions")

    def scores_of(
        images: Float[Tensor, "B M D"],
        image_mask: Bool[Tensor, "B M"] | None,
        texts: Float[Tensor, "T N D"],
        text_mask: Bool[Tensor, "T N"],
    ) -> Float[Tensor, "B T"]:
        return local_scores(
            images,
            texts,
            text_mask,
            temperatures=temperatures[:2],
            aggregation=aggregation,
            word_softmax=word_softmax,
            similarity=similarity,
            region_mask=image_mask,
            chunk_size=chunk_size,
        )

    if gather and dist.is_available() and dist.is_initialized():
        everyone = _gathered(regions, region_mask, words, word_mask, text_ids, group)
        scores = scores_of(regions, region_mask, everyone.words, everyone.word_mask)
        of_texts = scores_of(everyone.regions, everyone.region_mask, words, word_mask)
        loss = _loss_over_ranks(scores * temperatures[2], of_texts * temperatures[2], everyone)
    else:
        scores = scores_of(regions, region_mask, words, word_mask)
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
    positives = equal_ids(text_ids, text_ids) & has_words.unsqueeze(1) & has_words
    to_text = cross_entropy_to_all(logits, positives, has_words)
    to_image = cross_entropy_to_all(logits.T, positives, has_words)
    return (to_text + to_image) / 2


class _Everyone(NamedTuple):
    """The pairs of all ranks, T of them, and which of them are this rank's."""

    regions: Float[Tensor, "T M D"]
    region_mask: Bool[Tensor, "T M"] | None
    words: Float[Tensor, "T N D"]
    word_mask: Bool[Tensor, "T N"]
    text_ids: Int[Tensor, "T"]
    own: slice


def _gathered(
    regions: Float[Tensor, "B M D"],
    region_mask: Bool[Tensor, "B M"] | None,
    words: Float[Tensor, "B N D"],
    word_mask: Bool[Tensor, "B N"],
    text_ids: Int[Tensor, "B"] | None,
    group: dist.ProcessGroup | None,
) -> _Everyone:
    """Gathers pairs in the order of ranks; texts are padded to the longest of all ranks, which the host reads."""
    longest = torch.tensor([words.shape[1]], device=words.device)
    dist.all_reduce(longest, dist.ReduceOp.MAX, group=group)
    more = int(longest) - words.shape[1]
    all_regions = all_gather_with_gradient(regions, group)
    # Zeros in place of what no mask shows: a NaN in padding stays on its rank.
    shown = torch.where(word_mask.unsqueeze(2), words, 0.0)
    all_words = all_gather_with_gradient(F.pad(shown, (0, 0, 0, more)), group)
    all_mask = all_gather_with_gradient(F.pad(word_mask, (0, more)), group)
    batch, rank = len(regions), dist.get_rank(group)
    ids = torch.arange(len(all_words), device=words.device)
    return _Everyone(
        all_regions,
        None if region_mask is None else all_gather_with_gradient(region_mask, group),
        all_words,
        all_mask,
        ids if text_ids is None else all_gather_with_gradient(text_ids, group),
        slice(rank * batch, (rank + 1) * batch),
    )


def _loss_over_ranks(
    to_text: Float[Tensor, "B T"], to_image: Float[Tensor, "T B"], everyone: _Everyone
) -> Float[Tensor, ""]:
    """Computes this rank's part: its mean over ranks is the mean over all pairs that have words."""
    has_words = everyone.word_mask.any(dim=1)
    own_ids, own_words = everyone.text_ids[everyone.own], has_words[everyone.own]
    positives = equal_ids(own_ids, everyone.text_ids) & own_words.unsqueeze(1) & has_words
    losses = [cross_entropy_to_all(logits, positives, has_words) for logits in (to_text, to_image.T)]
    # Ranks may have different numbers of texts with words; each row of the whole batch counts the same.
    ranks = len(has_words) // max(len(own_words), 1)
    share = ranks * own_words.sum() / has_words.sum().clamp(min=1)
    return share * (losses[0] + losses[1]) / 2
