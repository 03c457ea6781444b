"""Attention of words over the regions of an image.

Shape letters: B pairs, M regions of an image, N words of a text, D width.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from moekit.checks import check_choice
from moekit.contrastive._checks import check_pairs, check_region_mask, check_regions_and_words, check_scale
from moekit.contrastive._chunked_scores import softmax_over_regions
from moekit_kernels.autocast import autocast, no_autocast

Similarity = Literal["dot", "cosine"]
SIMILARITIES = ("dot", "cosine")


def attention_maps(
    regions: Float[Tensor, "B M D"],
    words: Float[Tensor, "B N D"],
    word_mask: Bool[Tensor, "B N"],
    *,
    temperature: float | Float[Tensor, ""] = 4.0,
    word_softmax: bool = True,
    similarity: Similarity = "dot",
    region_mask: Bool[Tensor, "B M"] | None = None,
) -> Float[Tensor, "B N M"]:
    """Computes the attention of each text's words over the regions of the text's own image.

    ``softmax_m(temperature * s)`` with ``s = softmax_n(words regionsᵀ)``, or ``s = words regionsᵀ`` without
    ``word_softmax``; with ``similarity="cosine"`` of words and regions of length 1. Words compete for a region first,
    then regions for a word. Softmaxes are computed in float32 (float64 for float64 input), products in the autocast
    dtype where autocast is on.

    Args:
        regions: Regions, shape (B, M, D).
        words: Words, shape (B, N, D).
        word_mask: True at words, shape (B, N); values elsewhere never matter.
        temperature: GLoRIA's ``temp1``. It multiplies. A tensor of no dimension gets its gradient.
        word_softmax: Whether words compete, as in GLoRIA's code; its paper prints the second softmax alone.
        similarity: ``"dot"``, as in GLoRIA, where the lengths of words and regions set how peaked a map is; or
            ``"cosine"``, where the temperature alone does.
        region_mask: True at regions that count, shape (B, M), such as those of the image but not of the padding
            around it; values elsewhere never matter. All count by default.

    Returns:
        Weights that sum to 1 over regions, shape (B, N, M), in float32 or float64; zeros where there is no word,
        at regions that do not count, and for an image without any that does.

    Raises:
        ValueError: If a shape, dtype or device does not fit, or ``temperature`` is not positive.

    Reference:
        GLoRIA, equation 4, https://openaccess.thecvf.com/content/ICCV2021/html/Huang_GLoRIA_ICCV_2021_paper.html
        and its code, ``attention_fn``, https://github.com/marshuang80/gloria. ``similarity`` and ``region_mask`` are
        additions.

    Example:
        >>> regions = torch.tensor([[[5.0, 0.0], [0.0, 5.0]]])
        >>> words = torch.tensor([[[3.0, 0.0], [0.0, 3.0], [9.0, 9.0]]])
        >>> attention_maps(regions, words, torch.tensor([[True, True, False]]), temperature=2.0)
        tensor([[[0.8808, 0.1192],
                 [0.1192, 0.8808],
                 [0.0000, 0.0000]]])
    """
    check_regions_and_words(regions, words, word_mask, "B, N, D")
    check_pairs(regions, words)
    check_scale("temperature", temperature)
    check_choice("similarity", similarity, SIMILARITIES)
    check_region_mask(region_mask, regions)
    real = word_mask.unsqueeze(2)
    regions, words = prepared(regions, words, word_mask, region_mask, similarity)
    regions, words = autocast(regions), autocast(words)
    with no_autocast(regions.device.type):
        logits = words @ regions.mT
        dtype = torch.promote_types(logits.dtype, torch.float32)
        logits = logits.to(dtype)
        if word_softmax:
            logits = logits.masked_fill(~real, torch.finfo(dtype).min).softmax(dim=1)
        return torch.where(real, softmax_over_regions(temperature * logits, region_mask), 0.0)


def prepared(
    regions: Float[Tensor, "B M D"],
    words: Float[Tensor, "T N D"],
    word_mask: Bool[Tensor, "T N"],
    region_mask: Bool[Tensor, "B M"] | None,
    similarity: Similarity,
) -> tuple[Float[Tensor, "B M D"], Float[Tensor, "T N D"]]:
    """Returns regions and words with zeros where they do not count, of length 1 where cosines are asked for."""
    words = torch.where(word_mask.unsqueeze(2), words, 0.0)
    if region_mask is not None:
        regions = torch.where(region_mask.unsqueeze(2), regions, 0.0)
    return (_unit(regions), _unit(words)) if similarity == "cosine" else (regions, words)


def scale_tensor(temperature: float | Float[Tensor, ""], like: Tensor) -> Float[Tensor, ""]:
    """Returns a temperature as a tensor of no dimension, of float32 or wider, beside ``like``."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    if isinstance(temperature, Tensor):
        return temperature.to(like.device, dtype)
    return torch.full((), temperature, dtype=dtype, device=like.device)


def _unit(x: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows D"]:
    """Returns vectors at length 1, computed in float32 or wider; zeros stay zeros."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return F.normalize(wide, dim=-1).to(x.dtype)
