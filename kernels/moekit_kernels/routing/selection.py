"""Selection of experts: the k largest scores, ties to the lowest id, optionally within groups.

Names end with the letters of their layout: T tokens, E experts, G groups, S experts of one group; a 1 is a column.
"""

import math
from array import array
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from moekit_kernels.eager import can_read

# So few scores are ranked in Python sooner than by tensor operations.
_FEW = 128

# Above this k a sort is cheaper than k passes over the scores.
_PASSES = 16


def top_k_ids(scores: Float[Tensor, "T E"], k: int, *, readable: bool | None = None) -> Int[Tensor, "T K"]:
    """Returns the indices of the ``k`` largest scores of each row, largest first, ties to the lowest index.

    ``torch.topk`` leaves ties open, so two devices may choose differently; this does not. Scores of
    ``-inf`` are chosen last. No gradient.

    Args:
        scores: The scores.
        k: ``K``.
        readable: Whether the scores may be read here, where that is known already.
    """
    if not (can_read(scores) if readable is None else readable):
        return _largest_in_order(scores.detach(), k)
    if 0 < scores.numel() <= _FEW:
        rows = cast(list[list[float]], scores.tolist())
        if not math.isnan(sum(map(sum, rows))):
            return _largest_in_python(rows, k)
    scores_TE = scores.detach()
    # topk is many times faster, and right where the largest k + 1 scores of a row differ. Other rows are rare.
    values_TP, ids_TP = scores_TE.topk(min(k + 1, scores_TE.shape[1]))
    ids_TK = ids_TP[:, :k].contiguous()
    equals_next = values_TP[:, 1:] == values_TP[:, :-1]
    if equals_next.any():
        tied = equals_next.any(-1).nonzero().squeeze(-1)
        ids_TK[tied] = _largest_in_order(scores_TE[tied], k)
    return ids_TK


def _largest_in_python(rows: list[list[float]], k: int) -> Tensor:
    """Computes :func:`top_k_ids` of numbers that are not NaN, which have no order."""
    ids = array("q")
    for row in rows:
        ids.extend(sorted(range(len(row)), key=row.__getitem__, reverse=True)[:k])  # stable, in reverse too
    return torch.frombuffer(ids, dtype=torch.int64).view(len(rows), k)


def _largest_in_order(scores_TE: Tensor, k: int) -> Tensor:
    """Computes :func:`top_k_ids` without reading anything on the host."""
    if k > _PASSES:
        return scores_TE.sort(dim=-1, descending=True, stable=True).indices[:, :k]
    expert_E = torch.arange(scores_TE.shape[-1], device=scores_TE.device)
    # A score of -inf must stay above what has been chosen already, which becomes -inf below.
    scores_TE = scores_TE.clamp(min=torch.finfo(scores_TE.dtype).min)
    chosen: list[Tensor] = []
    for _ in range(k):
        best_T1 = scores_TE.argmax(-1, keepdim=True)
        chosen.append(best_T1)
        if len(chosen) < k:
            scores_TE = torch.where(expert_E == best_T1, -torch.inf, scores_TE)
    return torch.cat(chosen, dim=-1)


def limit_to_groups(
    scores: Float[Tensor, "T E"], num_groups: int, topk_groups: int, group_score: str = "top2_sum"
) -> Float[Tensor, "T E"]:
    """Keeps the scores of the best ``topk_groups`` of ``num_groups`` equal groups, others become ``-inf``.

    A group's score is the sum of its two largest (of its only one in a group of one): DeepSeek-V3,
    https://arxiv.org/abs/2412.19437, section 2.1.2, as in the authors' public code. With ``"max"`` it is its largest:
    DeepSeek-V2, https://arxiv.org/abs/2405.04434, section 2.2.2.
    """
    scores_TGS = scores.detach().reshape(scores.shape[0], num_groups, scores.shape[1] // num_groups)
    if group_score == "max":
        group_scores_TG = scores_TGS.amax(-1)
    else:
        group_scores_TG = scores_TGS.topk(min(2, scores_TGS.shape[-1]), dim=-1).values.sum(-1)
    best_groups = top_k_ids(group_scores_TG, topk_groups)
    is_best_TG = torch.zeros_like(group_scores_TG, dtype=torch.bool).scatter(-1, best_groups, True)
    return torch.where(is_best_TG.unsqueeze(-1), scores_TGS, -torch.inf).flatten(-2)
