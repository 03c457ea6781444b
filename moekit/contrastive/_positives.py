"""Which pairs belong together, and the cross entropy towards several of them."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def equal_ids(rows: Int[Tensor, "rows"], columns: Int[Tensor, "columns"]) -> Bool[Tensor, "rows columns"]:
    """Returns True where the id of a row equals that of a column."""
    return rows.unsqueeze(1) == columns.unsqueeze(0)


def cross_entropy_to_all(
    logits: Float[Tensor, "rows columns"],
    positives: Bool[Tensor, "rows columns"],
    candidates: Bool[Tensor, "columns"] | None = None,
) -> Float[Tensor, ""]:
    """Computes the mean over rows of the softmax's cross entropy to the uniform distribution over positives.

    That is SupCon's "out" form: the mean over positives stands outside the logarithm. Rows without a
    positive do not count; 0 if no row has one.

    Args:
        logits: Of the softmax over columns.
        positives: True at each row's positives, which must be among the candidates.
        candidates: Columns that take part; values in the others never matter. All if None.
    """
    if candidates is not None:
        # The least finite number rather than -inf: a softmax over such columns alone is no NaN.
        logits = logits.masked_fill(~candidates, torch.finfo(logits.dtype).min)
    log_probs = logits.log_softmax(dim=1)
    counts = positives.sum(dim=1)
    per_row = -torch.where(positives, log_probs, 0.0).sum(dim=1) / counts.clamp(min=1)
    return per_row.sum() / (counts > 0).sum().clamp(min=1)
