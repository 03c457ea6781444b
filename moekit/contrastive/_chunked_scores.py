"""Scores of all images with all texts, a few texts at a time, with a backward that keeps no attention.

The attention of B images with T texts has B·T·N·M elements; autograd would keep several such tensors. Here
forward keeps none and backward computes each chunk's again. Gradients of regions and words add up in place, so that
memory is that of the gradients and of one chunk.

With ``s = w·v`` for a word w and the regions v, ``q`` its softmax over words (or s itself), ``a`` the softmax over
regions of ``τ1 q``, ``c = Σ a v`` and ``x = cos(w, c)``, a score is ``log Σ exp(τ2 x)`` over words, or a mean or
maximum in place of the sum. Backward from ``g = d loss / d x``, with ``n = |w||c|``:

    dc = g (w/n - x c/|c|²)        dw = g (c/n - x w/|w|²) + Σ ds v
    da = dc·v                      dv = a dc + ds w
    dq = τ1 a (da - Σ a da)        ds = q (dq - Σ q dq)

The inner sums ``Σ a da = dc·c`` over regions need no tensor of the size of the attention. The gradient of ``τ1`` is
``Σ a (da - Σ a da) q = Σ dq q / τ1``, which is ``Σ w·(Σ ds v) / τ1`` where ``q = s``. Regions that a mask leaves out
have no weight, so none of these sums sees them.

Shape letters: B images, M regions of an image, T texts, N words of a text, D width; C texts of a chunk.
"""

from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from moekit_kernels.autocast import no_autocast

# The length below which a vector has no direction, as in GLoRIA.
EPSILON = 1e-8
# Tensors of the size of a chunk's attention that live at once in backward.
LIVE_TENSORS = 5


class Form(NamedTuple):
    """Options of the scores.

    Attributes:
        word_scale: τ2.
        aggregation: ``"mean"``, ``"sum"`` or ``"max"``.
        word_softmax: Whether words compete for regions.
        chunk_size: Texts at a time.
    """

    word_scale: float
    aggregation: str
    word_softmax: bool
    chunk_size: int


class _Attended(NamedTuple):
    """A chunk's attention: weights over words (if any) and over regions, and contexts."""

    over_words: Tensor | None
    over_regions: Tensor
    contexts: Tensor


class _Cosine(NamedTuple):
    """Similarities of words and contexts, (B, C, N), and the lengths that they were divided by."""

    value: Tensor
    word_length: Tensor
    context_length: Tensor
    divisor: Tensor


class ChunkedScores(torch.autograd.Function):
    """Scores (B, T) of regions (B, M, D), words (T, N, D), τ1 (), masks (T, N) and (B, M) or None, and a form.

    Regions and words must be zeros where their mask is False; τ1 is a tensor, so that it may be trained. Matrix
    products are in the dtype of the input, all else in float32 (or float64). Differentiating the backward again raises.
    """

    @staticmethod
    def forward(
        ctx: Any,
        regions: Tensor,
        words: Tensor,
        attention_scale: Tensor,
        word_mask: Tensor,
        region_mask: Tensor | None,
        form: Form,
    ) -> Tensor:
        """Computes the scores, chunk by chunk."""
        ctx.save_for_backward(regions, words, attention_scale, word_mask, region_mask)
        ctx.form = form
        scores = regions.new_empty(regions.shape[0], words.shape[0], dtype=_wide(regions))
        with no_autocast(regions.device.type):
            for part in _chunks(words.shape[0], form.chunk_size):
                attended = _attend(regions, words[part], attention_scale, word_mask[part], region_mask, form)
                similarity = _cosine(attended.contexts, words[part]).value
                scores[:, part] = _aggregate(similarity, word_mask[part], form)
        return scores

    @staticmethod
    def backward(
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None, None]:
        """Computes the gradients of regions, words and the scale of the attention."""
        needed = ctx.needs_input_grad[:3]
        # torch's own types leave the result of apply unknown.
        gradients = cast(
            tuple[Tensor | None, Tensor | None, Tensor | None],
            _Gradients.apply(grad_outputs[0], *ctx.saved_tensors, ctx.form, needed),
        )
        return *gradients, None, None, None


class _Gradients(torch.autograd.Function):
    """Gradients of the inputs; a function of its own, so that a second derivative raises."""

    @staticmethod
    def forward(
        ctx: Any,
        grad: Tensor,
        regions: Tensor,
        words: Tensor,
        attention_scale: Tensor,
        word_mask: Tensor,
        region_mask: Tensor | None,
        form: Form,
        needed: tuple[bool, bool, bool],
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Adds the gradients up chunk by chunk."""
        wide = _wide(regions)
        grad_regions = torch.zeros_like(regions, dtype=wide) if needed[0] else None
        grad_words = torch.empty_like(words, dtype=wide) if needed[1] else None
        grad_scale = torch.zeros_like(attention_scale, dtype=wide) if needed[2] else None
        with no_autocast(regions.device.type):
            for part in _chunks(words.shape[0], form.chunk_size):
                into = _Sums(grad_regions, None if grad_words is None else grad_words[part], grad_scale)
                chunk = (words[part], attention_scale, word_mask[part], region_mask)
                _add_gradients(regions, *chunk, grad[:, part], form, into)
        return (
            None if grad_regions is None else grad_regions.to(regions.dtype),
            None if grad_words is None else grad_words.to(words.dtype),
            None if grad_scale is None else grad_scale.to(attention_scale.dtype),
        )

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> None:
        """Raises: there is no second derivative."""
        raise RuntimeError(
            "local_scores has no second derivatives: its backward cannot be differentiated. Leave out "
            "create_graph=True, or compute the scores by the formula of its documentation."
        )


def texts_per_chunk(regions: Float[Tensor, "B M D"], num_words: int, budget: int) -> int:
    """Returns how many texts at a time keep a chunk within ``budget`` bytes, at least one."""
    num_images, num_regions, width = regions.shape
    per_text = LIVE_TENSORS * num_images * max(num_words, 1) * max(num_regions, width) * _wide(regions).itemsize
    return max(1, budget // max(per_text, 1))


def _chunks(num_texts: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, num_texts)) for start in range(0, num_texts, size)]


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _attend(
    regions: Float[Tensor, "B M D"],
    words: Float[Tensor, "C N D"],
    attention_scale: Float[Tensor, ""],
    mask: Bool[Tensor, "C N"],
    region_mask: Bool[Tensor, "B M"] | None,
    form: Form,
) -> _Attended:
    """Computes the attention of a chunk: weights (B, C, N, M) and contexts (B, C, N, D)."""
    wide = _wide(regions)
    batch, num_regions, width = regions.shape
    rows = words.reshape(1, -1, width).expand(batch, -1, -1)
    logits = torch.bmm(rows, regions.mT).to(wide).view(batch, *mask.shape, num_regions)
    over_words = None
    if form.word_softmax:
        # The least finite number rather than -inf: no NaN where a text has no word.
        logits = logits.masked_fill_(~mask.unsqueeze(2), torch.finfo(wide).min).softmax(dim=2)
        over_words = logits
        logits = logits * attention_scale
    else:
        logits = logits.mul_(attention_scale)
    over_regions = softmax_over_regions(logits, region_mask)
    del logits
    contexts = torch.bmm(over_regions.view(batch, -1, num_regions).to(regions.dtype), regions)
    return _Attended(over_words, over_regions, contexts.to(wide).view(batch, *mask.shape, width))


def softmax_over_regions(
    logits: Float[Tensor, "B *rows M"], region_mask: Bool[Tensor, "B M"] | None
) -> Float[Tensor, "B *rows M"]:
    """Computes the softmax over the regions that count; zeros for those that do not, and for an image without any."""
    if region_mask is None:
        return logits.softmax(dim=-1)
    left_out = ~region_mask.view(len(region_mask), *[1] * (logits.ndim - 2), -1)
    # The least finite number rather than -inf: no NaN where an image has no region.
    return logits.masked_fill(left_out, torch.finfo(logits.dtype).min).softmax(dim=-1).masked_fill(left_out, 0.0)


def _cosine(contexts: Float[Tensor, "B C N D"], words: Float[Tensor, "C N D"]) -> _Cosine:
    words = words.to(contexts.dtype)
    word_length = _length(words)
    context_length = _length(contexts)
    divisor = (word_length * context_length).clamp(min=EPSILON)
    return _Cosine((contexts * words).sum(dim=-1) / divisor, word_length, context_length, divisor)


def _length(x: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows"]:
    return cast(Tensor, x.norm(dim=-1))  # torch's own types leave it unknown


def _aggregate(similarity: Float[Tensor, "B C N"], mask: Bool[Tensor, "C N"], form: Form) -> Float[Tensor, "B C"]:
    """Computes the scores of a chunk; -inf where a text has no word."""
    exponents = (form.word_scale * similarity).masked_fill(~mask, -torch.inf)
    if form.aggregation == "max":
        return exponents.amax(dim=2)
    total = exponents.logsumexp(dim=2)
    if form.aggregation == "mean":
        total = total - mask.sum(dim=1).clamp(min=1).to(total.dtype).log()
    return total


def _word_shares(similarity: Float[Tensor, "B C N"], mask: Bool[Tensor, "C N"], form: Form) -> Float[Tensor, "B C N"]:
    """Computes the derivative of a score by the exponents of its words; equal maxima share it."""
    exponents = (form.word_scale * similarity).masked_fill(~mask, torch.finfo(similarity.dtype).min)
    if form.aggregation == "max":
        highest = (exponents == exponents.amax(dim=2, keepdim=True)).to(similarity.dtype)
        shares = highest / highest.sum(dim=2, keepdim=True)
    else:
        shares = exponents.softmax(dim=2)
    return torch.where(mask, shares, 0.0)


class _Sums(NamedTuple):
    """Where gradients add up; None for what needs none."""

    regions: Tensor | None
    words: Tensor | None
    scale: Tensor | None


def _add_gradients(
    regions: Float[Tensor, "B M D"],
    words: Float[Tensor, "C N D"],
    attention_scale: Float[Tensor, ""],
    mask: Bool[Tensor, "C N"],
    region_mask: Bool[Tensor, "B M"] | None,
    grad: Float[Tensor, "B C"],
    form: Form,
    into: _Sums,
) -> None:
    """Adds a chunk's part to the gradients of the regions and the scale, and writes the gradient of its words."""
    grad_regions, grad_words, grad_scale = into
    over_words, attention, contexts = _attend(regions, words, attention_scale, mask, region_mask, form)
    batch, num_regions, width = regions.shape
    wide_words = words.to(contexts.dtype)
    cosine = _cosine(contexts, words)
    grad_cosine = grad.unsqueeze(2) * form.word_scale * _word_shares(cosine.value, mask, form)
    direct = grad_cosine / cosine.divisor
    lengths = cosine.word_length * cosine.context_length
    # Of the product of lengths; none where it was clamped.
    through_lengths = torch.where(lengths > EPSILON, direct * cosine.value, 0.0)
    tiny = torch.finfo(contexts.dtype).tiny
    if grad_words is not None:
        along = (through_lengths * cosine.context_length).sum(dim=0) / cosine.word_length.clamp(min=tiny)
        # One row of images times contexts for each word, read in place with strides.
        by_word = direct.reshape(batch, -1).T.unsqueeze(1)
        grad_words.copy_(torch.bmm(by_word, contexts.view(batch, -1, width).transpose(0, 1)).view_as(grad_words))
        grad_words.sub_(along.unsqueeze(2) * wide_words)
    # dc·c, which is 0 but for clamped lengths: a cosine is invariant to the length of c.
    inner = direct * (cosine.value * cosine.divisor) - through_lengths * lengths
    shrink = through_lengths * cosine.word_length / cosine.context_length.clamp(min=tiny)
    grad_contexts = contexts.mul_(-shrink.unsqueeze(3)).addcmul_(direct.unsqueeze(3), wide_words)
    low_grad_contexts = grad_contexts.view(batch, -1, width).to(regions.dtype)
    if grad_regions is not None:
        _add_product(grad_regions, attention.view(batch, -1, num_regions).to(regions.dtype).mT, low_grad_contexts)
    grad_logits = torch.bmm(low_grad_contexts, regions.mT).to(attention.dtype).view_as(attention)
    grad_logits.sub_(inner.unsqueeze(3)).mul_(attention)
    del attention
    if over_words is not None and grad_scale is not None:
        grad_scale.add_(torch.dot(grad_logits.flatten(), over_words.flatten()))
    grad_logits.mul_(attention_scale)
    if over_words is not None:
        grad_logits.mul_(over_words)
        grad_logits.addcmul_(over_words, grad_logits.sum(dim=2, keepdim=True), value=-1)
        del over_words
    low_grad_logits = grad_logits.view(batch, -1, num_regions).to(regions.dtype)
    if grad_regions is not None:
        _add_product(grad_regions, low_grad_logits.mT, words.reshape(1, -1, width).expand(batch, -1, -1))
    scale_by_dots = grad_scale is not None and not form.word_softmax
    if grad_words is None and not scale_by_dots:
        return
    by_image = torch.bmm(low_grad_logits, regions)
    if grad_scale is not None and scale_by_dots:
        along = by_image.sum(dim=0, dtype=grad_scale.dtype).view_as(words)
        grad_scale.add_(torch.dot(along.flatten(), wide_words.flatten()) / attention_scale)
    if grad_words is not None:
        grad_words.add_(by_image.sum(dim=0, dtype=grad_words.dtype).view_as(grad_words))


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """``total += left @ right``, without a copy where all are of one dtype."""
    if total.dtype == left.dtype:
        total.baddbmm_(left, right)
    else:
        total.add_(torch.bmm(left, right))
