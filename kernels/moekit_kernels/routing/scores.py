"""Scores of experts in plain PyTorch, and their logarithms: a softmax of these is the scores over their sum.

Names end with the letters of their layout: T tokens, E experts, K experts per token.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

# Below, log softplus is the first two terms of its series, whose next one is 1e-18.
_LOW = -20.0
# Above, softplus is the logit itself: 4e-18 too little. torch's default of 20 would be wrong by 2e-9.
_LINEAR = 40.0


def scores_of(logits: Float[Tensor, "T E"], scoring: str) -> Float[Tensor, "T E"]:
    """Returns the scores: those of ``"topk_softmax"`` before its choice are those of ``"softmax"``."""
    if scoring == "sigmoid":
        return logits.sigmoid()
    if scoring == "sqrt_softplus":
        # The root of a softplus that is rounded to zero would have an infinite derivative.
        root = _softplus(logits.clamp(min=_LOW)).sqrt()
        return torch.where(logits <= _LOW, log_scores(logits, scoring).exp(), root)
    return logits.softmax(-1)


def log_scores(logits: Float[Tensor, "T E"], scoring: str) -> Float[Tensor, "T E"]:
    """Returns the logarithms of the scores, those of a softmax up to a summand of the row: never ``log 0``."""
    if scoring == "sigmoid":
        return F.logsigmoid(logits)
    if scoring == "sqrt_softplus":
        series = logits - logits.clamp(max=_LOW).exp() / 2
        return torch.where(logits <= _LOW, series, _softplus(logits.clamp(min=_LOW)).log()) / 2
    return logits


def probabilities(logits: Float[Tensor, "T E"], scores: Float[Tensor, "T E"], scoring: str) -> Float[Tensor, "T E"]:
    """Returns the scores over their sum."""
    return log_scores(logits, scoring).softmax(-1) if scoring in ("sigmoid", "sqrt_softplus") else scores


def gates_of_chosen(
    logits: Float[Tensor, "T E"],
    scores: Float[Tensor, "T E"],
    ids: Int[Tensor, "T K"],
    *,
    scoring: str,
    renormalize: bool,
    scaling_factor: float,
) -> Float[Tensor, "T K"]:
    """Returns the gates of chosen experts; see :func:`~moekit_kernels.routing.route_reference`.

    Args:
        logits: Router logits, finite.
        scores: What :func:`scores_of` makes of them.
        ids: The chosen experts.
        scoring: How scores come from logits.
        renormalize: Whether the gates of a token are divided by their sum.
        scaling_factor: Multiplies the gates, after that.
    """
    if renormalize or scoring == "topk_softmax":
        # Also the softmax over all experts, renormalised; never 0/0.
        gates_TK = log_scores(logits.gather(-1, ids), scoring).softmax(-1)
    else:
        gates_TK = scores.gather(-1, ids)
    return gates_TK if scaling_factor == 1.0 else gates_TK * scaling_factor


def _softplus(logits: Tensor) -> Tensor:
    return F.softplus(logits, threshold=_LINEAR)
