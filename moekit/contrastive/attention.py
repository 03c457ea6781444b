"""Attention of words over the regions of an image.

Shape letters: B pairs, M regions of an image, N words of a text, D width.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from moekit.contrastive._checks import check_pairs, check_regions_and_words, check_scale
from moekit_kernels.autocast import autocast, no_autocast


def attention_maps(
    regions: Float[Tensor, "B M D"],
    words: Float[Tensor, "B N D"],
    word_mask: Bool[Tensor, "B N"],
    *,
    temperature: float = 4.0,
    word_softmax: bool = True,
) -> Float[Tensor, "B N M"]:
    """Computes the attention of each text's words over the regions of the text's own image.

    ``softmax_m(temperature * s)`` with ``s = softmax_n(words regionsᵀ)``, or ``s = words regionsᵀ`` without
    ``word_softmax``. Words compete for a region first, then regions for a word. Softmaxes are computed in
    float32 (float64 for float64 input), products in the autocast dtype where autocast is on.

    Args:
        regions: Regions, shape (B, M, D).
        words: Words, shape (B, N, D).
        word_mask: True at words, shape (B, N); values elsewhere never matter.
        temperature: GLoRIA's ``temp1``. It multiplies.
        word_softmax: Whether words compete, as in GLoRIA's code; its paper prints the second softmax alone.

    Returns:
        Weights that sum to 1 over regions, shape (B, N, M), in float32 or float64; zeros where there is no word.

    Raises:
        ValueError: If a shape, dtype or device does not fit, or ``temperature`` is not positive.

    Reference:
        GLoRIA, equation 4, https://openaccess.thecvf.com/content/ICCV2021/html/Huang_GLoRIA_ICCV_2021_paper.html
        and its code, ``attention_fn``, https://github.com/marshuang80/gloria.

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
    real = word_mask.unsqueeze(2)
    regions, words = autocast(regions), autocast(torch.where(real, words, 0.0))
    with no_autocast(regions.device.type):
        logits = words @ regions.mT
        dtype = torch.promote_types(logits.dtype, torch.float32)
        logits = logits.to(dtype)
        if word_softmax:
            logits = logits.masked_fill(~real, torch.finfo(dtype).min).softmax(dim=1)
        return torch.where(real, (temperature * logits).softmax(dim=2), 0.0)
