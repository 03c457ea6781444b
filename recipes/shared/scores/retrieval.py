"""Retrieval between images and texts: recall at K and median rank, with their chance levels.

Equal texts are one text. ``U`` texts describe ``N`` images, and each image has one of them:

- image → text: every image ranks the ``U`` distinct texts; its own text is the only hit. Ranking copies
  beside one another would let one text fill the first places of the list.
- text → image: every distinct text ranks all ``N`` images; an image of any study with that text is a hit,
  and the rank is that of the best one.

A rank counts the wrong candidates that score higher, and half of those that score the same, so a model
that scores everything alike is at the middle, not at the top.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import gammaln

RECALLS = (1, 5, 10)


def unique_texts(texts: Sequence[str]) -> tuple[list[str], NDArray[np.int64]]:
    """Returns the distinct texts in order of first appearance, and which of them each study has.

    Case and white space do not tell texts apart.

    Args:
        texts: One per study, length ``N``.

    Returns:
        ``U`` texts and their index for each study, shape ``(N,)``.
    """
    places: dict[str, int] = {}
    distinct: list[str] = []
    index: list[int] = []
    for text in texts:
        place = places.setdefault(" ".join(text.lower().split()), len(places))
        if place == len(distinct):
            distinct.append(text)
        index.append(place)
    return distinct, np.asarray(index, np.int64)


def retrieval_scores(scores: ArrayLike, text_index: ArrayLike, *, recalls: Sequence[int] = RECALLS) -> dict[str, Any]:
    """Computes recall at K and median rank, both ways.

    Args:
        scores: How well each image fits each distinct text, shape ``(N, U)``.
        text_index: Which text each image has, shape ``(N,)``, every number of ``[0, U)`` in use.
        recalls: The ``K`` of the recalls.

    Returns:
        ``image_to_text`` and ``text_to_image``, each with ``recall`` (``"1"``, ``"5"``, ... to the share of
        queries with a hit among the first ``K``), ``median_rank`` (1 is best), ``queries``, ``candidates``
        and ``chance`` (``recall`` and ``median_rank`` expected of scores that say nothing).

    Raises:
        ValueError: If the shapes disagree, a score is NaN, a text has no image, or a ``K`` is below 1.
    """
    values, index = np.asarray(scores, np.float64), np.asarray(text_index)
    _check(values, index, recalls)
    hits = index[:, None] == np.arange(values.shape[1])
    return {
        "image_to_text": _one_way(values, hits, recalls),
        "text_to_image": _one_way(values.T, hits.T, recalls),
    }


def hit_ranks(scores: NDArray[np.float64], hits: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Ranks the best hit of each query among the candidates that are no hit.

    Args:
        scores: Shape ``(Q, C)``.
        hits: Shape ``(Q, C)``, at least one per row.

    Returns:
        Shape ``(Q,)``: 1 plus the wrong candidates above, plus half of those with the same score.
    """
    best = np.where(hits, scores, -np.inf).max(axis=1, keepdims=True)
    above = ((scores > best) & ~hits).sum(axis=1)
    same = ((scores == best) & ~hits).sum(axis=1)
    return 1.0 + above + same / 2


def chance_recall(hits: NDArray[np.int64], candidates: int, k: int) -> float:
    """Computes the mean chance of a hit among ``k`` candidates drawn without replacement.

    ``1 - C(M - h, k) / C(M, k)`` for a query with ``h`` hits among ``M`` candidates.

    Args:
        hits: ``h`` of each query, shape ``(Q,)``.
        candidates: ``M``.
        k: How many are drawn; all of them where there are fewer.
    """
    if k >= candidates:
        return 1.0
    wrong = candidates - hits
    possible = wrong >= k
    log_misses = np.full(len(hits), -np.inf)
    log_misses[possible] = _log_choose(wrong[possible], k) - _log_choose(np.asarray(candidates), k)
    return float((1 - np.exp(log_misses)).mean())


def _log_choose(n: NDArray[np.int64], k: int) -> NDArray[np.float64]:
    return gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)


def _one_way(scores: NDArray[np.float64], hits: NDArray[np.bool_], recalls: Sequence[int]) -> dict[str, Any]:
    ranks = hit_ranks(scores, hits)
    queries, candidates = scores.shape
    counts = hits.sum(axis=1)
    # Of h hits among M in random order, the expected number of wrong candidates before the first is (M-h)/(h+1).
    expected = 1 + (candidates - counts) / (counts + 1)
    return {
        "recall": {str(k): float((ranks <= k).mean()) for k in recalls},
        "median_rank": float(np.median(ranks)),
        "queries": queries,
        "candidates": candidates,
        "chance": {
            "recall": {str(k): chance_recall(counts, candidates, k) for k in recalls},
            "median_rank": float(np.median(expected)),
        },
    }


def _check(scores: NDArray[np.float64], index: NDArray[Any], recalls: Sequence[int]) -> None:
    if scores.ndim != 2 or index.shape != scores.shape[:1] or 0 in scores.shape:
        raise ValueError(
            f"scores must have shape (images, texts) and text_index (images,), none of them empty, got "
            f"{scores.shape} and {index.shape}."
        )
    if np.isnan(scores).any():
        raise ValueError(f"scores must be numbers, got NaN for {int(np.isnan(scores).sum())} pairs.")
    if sorted(set(index.tolist())) != list(range(scores.shape[1])):
        raise ValueError(
            f"text_index must name each of the {scores.shape[1]} texts at least once and no other, got "
            f"{len(set(index.tolist()))} different ones between {index.min()} and {index.max()}. Use unique_texts."
        )
    if any(k < 1 for k in recalls):
        raise ValueError(f"recalls must be 1 or more, got {list(recalls)}.")
