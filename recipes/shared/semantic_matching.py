"""MedCLIP's contrast: images and texts belong together as far as their findings agree.

Shape letters: B images, as many texts, D the common width, C findings.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def semantic_matching_loss(
    image: Tensor, text: Tensor, labels: Tensor, has_text: Tensor, logit_scale: Tensor | float
) -> Tensor:
    """Computes MedCLIP's loss: an image and a text belong together as far as their findings agree.

    ``-½ (mean_i Σ_j y_ij log softmax_j(s cos_ij) + mean_j Σ_i y'_ij log softmax_i(s cos_ij))`` with the targets
    ``y = softmax_j(l_i·l_j)`` and ``y' = softmax_i(l_i·l_j)`` of unit vectors of findings ``l``. A study without any
    finding has the finding "none"; unknown labels count as not mentioned.

    Args:
        image: ``(B, D)``.
        text: ``(B, D)``, row for row of the same studies.
        labels: ``(B, C)``: 1, 0 or NaN.
        has_text: ``(B,)``; a row without a text is no column, and no row of the second direction.
        logit_scale: What multiplies the cosines, ``s``.

    Returns:
        A scalar in nats; 0 without any text.

    Reference:
        MedCLIP, equations 2 to 6, https://aclanthology.org/2022.emnlp-main.256. There a parser finds the findings of a
        text; here they are what the caller gives.
    """
    image, text = F.normalize(image.float(), dim=1), F.normalize(text.float(), dim=1)
    logits = logit_scale * (image @ text.T)
    findings = F.normalize(_with_none(labels), dim=1)
    agreement = findings @ findings.T
    lowest = torch.finfo(logits.dtype).min
    columns = has_text.unsqueeze(0)
    targets = agreement.masked_fill(~columns, lowest).softmax(dim=1)
    to_text = -(targets * logits.masked_fill(~columns, lowest).log_softmax(dim=1)).masked_fill(~columns, 0.0).sum(dim=1)
    to_image = -(agreement.softmax(dim=0) * logits.log_softmax(dim=0)).sum(dim=0)
    texts = has_text.sum()
    mean_of_texts = (to_image * has_text).sum() / texts.clamp(min=1)
    return 0.5 * (to_text.mean() * (texts > 0) + mean_of_texts)


def _with_none(labels: Tensor) -> Tensor:
    """Adds the finding "none" to ``(B, C)`` labels, and takes unknown ones as absent."""
    known = labels.nan_to_num().float()
    return torch.cat([known, (known.sum(dim=1, keepdim=True) == 0).float()], dim=1)
