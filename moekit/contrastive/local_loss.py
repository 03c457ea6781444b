"""The contrastive loss of the words of texts with the regions of images.

Shape letters: B pairs, M regions of an image, N words of a text, D width.
"""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from moekit.checks import check_choice
from moekit.contrastive.attention import attention_maps
from moekit.contrastive.checks import check_pairs, check_regions_and_words, check_scale, check_scales, check_text_ids
from moekit.contrastive.local_scores import local_scores
from moekit.contrastive.positives import cross_entropy_to_all, equal_ids
from moekit_kernels.autocast import autocast, no_autocast

GLORIA_TEMPERATURES = (4.0, 5.0, 10.0)


class LocalContrast(NamedTuple):
    """What :func:`local_contrastive_loss` gives.

    Attributes:
        loss: Scalar.
        scores: Scores of images (rows) with texts, shape (B, B), as of :func:`local_scores`; None for
            ``form="report"``.
        attention: Attention of each text's words over its own image, shape (B, N, M), as of
            :func:`attention_maps`, if asked for.
    """

    loss: Float[Tensor, ""]
    scores: Float[Tensor, "B B"] | None
    attention: Float[Tensor, "B N M"] | None


def local_contrastive_loss(
    regions: Float[Tensor, "B M D"],
    words: Float[Tensor, "B N D"],
    word_mask: Bool[Tensor, "B N"],
    *,
    form: Literal["batch", "report"] = "batch",
    temperatures: tuple[float, float, float] | None = None,
    temperature: float | None = None,
    aggregation: Literal["mean", "sum"] = "mean",
    word_softmax: bool | None = None,
    text_ids: Int[Tensor, "B"] | None = None,
    chunk_size: int | None = None,
    need_attention: bool = False,
) -> LocalContrast:
    """Contrast images with texts through the regions that each word attends to.

    ``form="batch"``, GLoRIA's: ``(CE(τ3 Z) + CE(τ3 Zᵀ)) / 2`` with ``Z = local_scores(regions, words)``, each
    image against all texts and each text against all images; ``ln B`` where all scores are equal. Memory is
    that of the gradients and of one chunk of texts.

    ``form="report"``, as MedMoE prints it: each word's context ``c_i = Σ_m softmax_m(t_i·v_m / τ) v_m``
    against the words of its own text, ``-log softmax_j(cos(c_i, t_j) / τ)`` at ``j = i``. No other image
    takes part, it has one direction, and a word that a text repeats is a negative of itself.

    A text without words counts neither as a row nor as a column, and nor does its image: the loss is that of
    the other pairs, 0 if there are none. Softmaxes are computed in float32 (float64 for float64 input), also
    under autocast, matrix products in the dtype of the input or of autocast.

    Args:
        regions: Regions, shape (B, M, D).
        words: Words, shape (B, N, D), e.g. of :func:`aggregate_word_pieces`.
        word_mask: True at words, shape (B, N); what stands elsewhere never matters.
        form: ``"batch"`` or ``"report"``.
        temperatures: Of the batch form: GLoRIA's ``temp1`` (attention), ``temp2`` (words) and ``temp3``
            (scores), which multiply; (4, 5, 10) by default.
        temperature: Of the report form, which needs it: τ, which divides, as printed.
        aggregation: Over words, ``"mean"``, or ``"sum"`` as printed and in GLoRIA, which favours long texts:
            of the exponentials in the batch form, of the words' losses in the report form.
        word_softmax: Of the batch form: whether words compete for a region, as in GLoRIA's code, which is
            the default; False is the attention of its paper.
        text_ids: Of the batch form: equal ids mark equal texts, shape (B,), all of which are positives with
            equal weight. By default every text is different.
        chunk_size: Of the batch form: texts at a time; by default what fits a budget.
        need_attention: Whether to return attention maps.

    Returns:
        Loss in nats, scores and attention.

    Raises:
        ValueError: If a shape, dtype or device does not fit, a number is out of range, or an argument of the
            other form is given.
        RuntimeError: When gradients of the batch form are differentiated again.

    Reference:
        GLoRIA, equations 4 to 8, https://openaccess.thecvf.com/content/ICCV2021/html/Huang_GLoRIA_ICCV_2021_paper.html,
        which adds the directions (twice this) and the words; MedMoE, section 4.4, which adds the words.

    Example:
        >>> regions = 4 * torch.eye(4).view(2, 2, 4)  # two images of two regions each
        >>> found = local_contrastive_loss(regions, regions, torch.ones(2, 2, dtype=torch.bool), need_attention=True)
        >>> bool(found.loss < 1e-4), found.attention.shape
        (True, torch.Size([2, 2, 2]))
    """
    check_choice("form", form, ("batch", "report"))
    check_choice("aggregation", aggregation, ("mean", "sum"))
    check_regions_and_words(regions, words, word_mask, "B, N, D")
    check_pairs(regions, words)
    if form == "report":
        _refuse("batch", temperatures=temperatures, word_softmax=word_softmax, text_ids=text_ids, chunk_size=chunk_size)
        if temperature is None:
            raise ValueError("temperature must be given with form='report', got None. MedMoE does not print its value.")
        check_scale("temperature", temperature)
        attention = attention_maps(regions, words, word_mask, temperature=1 / temperature, word_softmax=False)
        loss = _report_loss(attention, regions, words, word_mask, temperature, aggregation)
        return LocalContrast(loss, None, attention if need_attention else None)
    _refuse("report", temperature=temperature)
    scales = GLORIA_TEMPERATURES if temperatures is None else temperatures
    check_scales("temperatures", scales, "attention, words, scores")
    word_softmax = word_softmax is None or word_softmax
    scores = local_scores(
        regions,
        words,
        word_mask,
        temperatures=scales[:2],
        aggregation=aggregation,
        word_softmax=word_softmax,
        chunk_size=chunk_size,
    )
    loss = _batch_loss(scores * scales[2], word_mask.any(dim=1), text_ids)
    attention = None
    if need_attention:
        attention = attention_maps(regions, words, word_mask, temperature=scales[0], word_softmax=word_softmax)
    return LocalContrast(loss, scores, attention)


def _refuse(form: str, **given: object) -> None:
    """Raises ``ValueError`` if an argument of another form is given."""
    for name, value in given.items():
        if value is not None:
            raise ValueError(f"{name} must be left out unless form={form!r}: the other form has none, got {value}.")


def _batch_loss(
    logits: Float[Tensor, "B B"], has_words: Bool[Tensor, "B"], text_ids: Int[Tensor, "B"] | None
) -> Float[Tensor, ""]:
    """Both directions over the pairs that have words."""
    if text_ids is None:
        text_ids = torch.arange(len(logits), device=logits.device)
    else:
        check_text_ids(text_ids, len(logits), logits, "regions")
    positives = equal_ids(text_ids, text_ids) & has_words.unsqueeze(1) & has_words
    to_text = cross_entropy_to_all(logits, positives, has_words)
    to_image = cross_entropy_to_all(logits.T, positives, has_words)
    return (to_text + to_image) / 2


def _report_loss(
    attention: Float[Tensor, "B N M"],
    regions: Float[Tensor, "B M D"],
    words: Float[Tensor, "B N D"],
    word_mask: Bool[Tensor, "B N"],
    temperature: float,
    aggregation: str,
) -> Float[Tensor, ""]:
    """Mean over texts with words of the mean or sum of their words' cross entropies."""
    regions, words = autocast(regions), torch.where(word_mask.unsqueeze(2), words, 0.0)
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
