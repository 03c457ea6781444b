"""The contrastive losses of the baselines, each over a batch of pairs.

Shape letters: B images, T texts (as many as images, row for row), D the common width, C classes, M regions, N words.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from moekit import global_contrastive_loss, local_contrastive_loss
from recipes.medvlmoe.baselines.config import ContrastConfig
from recipes.shared.semantic_matching import semantic_matching_loss


class PairFeatures(NamedTuple):
    """What a model makes of a batch of pairs.

    Attributes:
        image: ``(B, D)``, of any length.
        text: ``(B, D)``; rows without a text do not matter.
        logit_scale: What multiplies cosines.
        regions: ``(B, M, D)``, for objectives that compare words with regions.
        words: ``(B, N, D)``, likewise.
        word_mask: ``(B, N)``, True at words.
        masked_loss: Loss of predicting masked words, where it was computed.
    """

    image: Tensor
    text: Tensor
    logit_scale: Tensor | float
    regions: Tensor | None = None
    words: Tensor | None = None
    word_mask: Tensor | None = None
    masked_loss: Tensor | None = None


class PairLosses(NamedTuple):
    """Losses of a batch, each a mean over its pairs.

    Attributes:
        total: The weighted sum, which is trained.
        global_loss: Whole images against whole texts.
        local_loss: Regions against words; 0 where the objective has none.
        masked_loss: Masked words; 0 where there is none.
    """

    total: Tensor
    global_loss: Tensor
    local_loss: Tensor
    masked_loss: Tensor


def pair_losses(
    config: ContrastConfig,
    features: PairFeatures,
    labels: Tensor,
    has_text: Tensor,
    text_ids: Tensor,
    *,
    gather: bool = False,
) -> PairLosses:
    """Computes the losses of a batch of pairs.

    | objective | loss |
    |---|---|
    | convirt | λ (image to text) + (1 - λ) (text to image) |
    | gloria | global + ``local_weight`` · local, both with their directions added, as published |
    | biovil | global + ``local_weight`` · local, means over directions, + ``masked_weight`` · masked words |
    | clip | global, mean over directions, usually with a trained temperature |
    | medclip | :func:`~recipes.shared.semantic_matching.semantic_matching_loss` |

    Equal texts are all positives of each other's images, with equal weight; the publications take every other text of
    the batch as a negative.

    Args:
        config: The objective and its numbers.
        features: Of the batch.
        labels: ``(B, C)``: 1, 0 or NaN (medclip).
        has_text: ``(B,)``, False at images without a text, which medclip alone may hold.
        text_ids: ``(B,)``, equal for equal texts.
        gather: Whether the global contrast runs over the batches of all ranks; medclip's stays within its own.
    """
    zero = features.image.new_zeros(())
    if config.objective == "medclip":
        contrast = semantic_matching_loss(features.image, features.text, labels, has_text, features.logit_scale)
        return PairLosses(contrast, contrast, zero, zero)

    def whole(directions: str) -> Tensor:
        return global_contrastive_loss(
            features.image,
            features.text,
            logit_scale=features.logit_scale,
            text_ids=text_ids,
            directions=directions,
            gather=gather,
        )

    if config.objective == "convirt":
        weight = config.image_to_text_weight
        contrast = weight * whole("image-to-text") + (1 - weight) * whole("text-to-image")
        return PairLosses(contrast, contrast, zero, zero)
    contrast = whole("both")
    if config.objective == "clip":
        return PairLosses(contrast, contrast, zero, zero)
    gloria = config.objective == "gloria"
    assert features.regions is not None
    assert features.words is not None
    assert features.word_mask is not None
    local = local_contrastive_loss(
        features.regions,
        features.words,
        features.word_mask,
        temperatures=config.local_temperatures,
        aggregation="sum" if gloria else "mean",
        word_softmax=config.word_softmax,
        text_ids=text_ids,
    ).loss
    masked = zero if features.masked_loss is None else features.masked_loss
    if gloria:  # the publication adds the directions
        contrast, local = 2 * contrast, 2 * local
    total = contrast + config.local_weight * local + config.masked_weight * masked
    return PairLosses(total, contrast, local, masked)


def hashed_texts(input_ids: Tensor, text_mask: Tensor) -> Tensor:
    """Computes a number of each text, equal for equal tokens, on every rank and without reading anything back.

    Args:
        input_ids: ``(B, N)``.
        text_mask: ``(B, N)``, True at tokens.

    Returns:
        ``(B,)`` int64: the sum of a hash of each token and its place, which wraps around.

    Reference:
        Steele, Lea and Flood 2014, the finaliser of SplitMix64, https://doi.org/10.1145/2660193.2660195.
    """
    places = torch.arange(1, input_ids.shape[1] + 1, device=input_ids.device)
    mixed = places * 0x1E3779B97F4A7C15 + input_ids
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        mixed = (mixed ^ (mixed >> shift)) * factor
    return ((mixed ^ (mixed >> 31)) * text_mask).sum(dim=1)
