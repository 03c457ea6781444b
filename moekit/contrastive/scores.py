"""Scores of images with texts, of the regions that words attend to.

Shape letters: B images, M regions of an image, T texts, N words of a text, D width.
"""

from typing import Literal, cast

import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from moekit.checks import check_choice, check_positive
from moekit.contrastive._checks import check_region_mask, check_regions_and_words, check_scales
from moekit.contrastive._chunked_scores import ChunkedScores, Form, texts_per_chunk
from moekit.contrastive.attention import SIMILARITIES, Similarity, prepared, scale_tensor
from moekit_kernels.autocast import autocast

# Bytes of a chunk by default: enough work for a launch, little beside the regions of a batch.
CHUNK_BUDGET = 128 << 20


def local_scores(
    regions: Float[Tensor, "B M D"],
    words: Float[Tensor, "T N D"],
    word_mask: Bool[Tensor, "T N"],
    *,
    temperatures: tuple[float | Float[Tensor, ""], float] = (4.0, 5.0),
    aggregation: Literal["mean", "sum", "max"] = "mean",
    word_softmax: bool = True,
    similarity: Similarity = "dot",
    region_mask: Bool[Tensor, "B M"] | None = None,
    chunk_size: int | None = None,
) -> Float[Tensor, "B T"]:
    """Computes GLoRIA's scores of every image with every text.

    ``log(mean_n exp(τ2 cos(w_n, c_n)))``, ``c_n = Σ_m a_nm v_m`` being the regions that word ``n`` attends to
    with the weights of :func:`attention_maps`. Texts are taken a few at a time and backward computes their
    attention again, so that memory is that of the gradients and of one chunk, not B·T·N·M. Softmaxes, lengths
    and sums are computed in float32 (float64 for float64 input), matrix products in the dtype of the input or
    of autocast.

    Args:
        regions: Regions, shape (B, M, D).
        words: Words, shape (T, N, D).
        word_mask: True at words, shape (T, N); values elsewhere never matter.
        temperatures: GLoRIA's ``temp1``, of the attention, and ``temp2``, of the words; both multiply. Its
            ``temp3`` scales the scores in the loss and is no part of them. The first may be a tensor of no dimension,
            which then gets its gradient.
        aggregation: Over words: ``"mean"``; ``"sum"``, GLoRIA's default in training, which favours long
            texts; or ``"max"``, its choice for zero-shot.
        word_softmax: Whether words compete for a region, as in GLoRIA's code; its paper prints the softmax
            over regions alone.
        similarity: See :func:`attention_maps`; with ``"cosine"`` the contexts, too, are of regions of length 1.
        region_mask: True at regions that count, shape (B, M); values elsewhere never matter. All count by default.
        chunk_size: Texts at a time; by default as many as fit 128 MiB.

    Returns:
        Scores, shape (B, T), in float32 or float64; -inf for a text without words, those of a zero context for an image
        without regions that count.

    Raises:
        ValueError: If a shape, dtype or device does not fit or a number is out of range.
        RuntimeError: When gradients are differentiated again, or derivatives are taken in forward mode or by
            ``torch.func``: there is a reverse mode of first order only.

    Reference:
        GLoRIA, equations 4 to 7, https://openaccess.thecvf.com/content/ICCV2021/html/Huang_GLoRIA_ICCV_2021_paper.html
        and its code, ``local_loss`` and ``get_local_similarities``, https://github.com/marshuang80/gloria.
        Deviation: the mean by default. ``similarity`` and ``region_mask`` are additions.

    Example:
        >>> regions = torch.eye(3).view(3, 1, 3)  # three images of one region
        >>> words = torch.tensor([[[0.0, 1.0, 0.0], [0.0, 2.0, 0.0]]])
        >>> local_scores(regions, words, torch.ones(1, 2, dtype=torch.bool)).T
        tensor([[0., 5., 0.]])
    """
    check_regions_and_words(regions, words, word_mask, "T, N, D")
    check_scales("temperatures", temperatures, "attention, words")
    check_choice("aggregation", aggregation, ("mean", "sum", "max"))
    check_choice("similarity", similarity, SIMILARITIES)
    check_region_mask(region_mask, regions)
    if chunk_size is None:
        chunk_size = texts_per_chunk(regions, words.shape[1], CHUNK_BUDGET)
    check_positive("chunk_size", chunk_size)
    if words.shape[1] == 0:
        # One masked word: a maximum needs an element.
        words, word_mask = F.pad(words, (0, 0, 0, 1)), F.pad(word_mask, (0, 1))
    form = Form(temperatures[1], aggregation, word_softmax, chunk_size)
    regions, words = prepared(regions, words, word_mask, region_mask, similarity)
    scale = scale_tensor(temperatures[0], regions)
    # torch's own types leave the result of apply unknown.
    return cast(Tensor, ChunkedScores.apply(autocast(regions), autocast(words), scale, word_mask, region_mask, form))
