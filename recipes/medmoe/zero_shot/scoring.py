"""Zero-shot scores: how well images fit the classes that prompts describe.

Letters: N images, C classes, P_c prompts of class c, D width of the embeddings.

| scoring | score of an image for class c | made for |
|---|---|---|
| ``mean`` | cosine with the renormalised mean of the class's unit prompt embeddings (CLIP's ensembles) | the default |
| ``max`` | highest cosine over the class's prompts | classes of several appearances |
| ``pairs`` | softmax over two cosines, with the mean of the prompts for and of those against (CheXzero) | multi-label |
| ``gloria`` | mean of two z-scores over the images: highest cosine, highest local score (GLoRIA) | local evidence |

``combined`` (`combined_scores`): ``(1 - w) z(cosine with the class) + w z(mean local score of its prompts)`` with the
fixed `LOCAL_WEIGHT`, where z subtracts the mean and divides by the standard deviation over training images of the
image's expert (`recipes.medmoe.inference.reference`). Where classes are kinds of image, the scale of each expert takes
away what tells them apart.

Deviations of ``gloria``: GLoRIA's code averages the cosine and the local score of each prompt as they are, takes the
highest over the prompts and z-scores the result over the images. Its local score is five times a cosine (its second
temperature), so the average is mostly that; we z-score both before averaging. Its local score takes a prompt's best
word; ours puts words together as the run was trained to. Either way the score of an image depends on the other images
of the set, as z-scores do.
"""

from collections.abc import Sequence
from typing import NamedTuple, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, softmax

from recipes.data.studies import Task
from recipes.medmoe.choices import Scoring
from recipes.medmoe.zero_shot.scale import scale_of

LOCAL_WEIGHT = 0.7
"""Weight of the local score in ``combined``: the middle of the range from 0.6 to 0.8 over which the accuracy of three
seeds hardly differs, on the validation split of drawn data. No other data had a part in it."""

TINY = 1e-12
"""Below this a length counts as zero."""

ROUNDING = 1e-6
"""A spread below this share of the largest value is rounding of float32, not a difference between images."""

Array = NDArray[np.float64]


class ClassScores(NamedTuple):
    """What ``N`` images score for ``C`` classes.

    Attributes:
        scores: ``(N, C)``, higher fits better; the prediction of a single-label task is the highest.
        probs: ``(N, C)`` in ``[0, 1]``. Single-label: softmax over the classes; multi-label: each class's own
            sigmoid; ``pairs``: the probability of "present" against "absent". A sigmoid of a cosine is
            monotone but not calibrated: it serves the AUROC, not a threshold.
    """

    scores: Array
    probs: Array


def score_classes(
    images: ArrayLike,
    prompts: Sequence[ArrayLike],
    *,
    scoring: Scoring = "mean",
    task: Task = "multi-class",
    scale: float = 1.0,
    absent: Sequence[ArrayLike] | None = None,
    local: Sequence[ArrayLike] | None = None,
) -> ClassScores:
    """Scores images for classes.

    Args:
        images: Image embeddings, shape ``(N, D)``; brought to unit length.
        prompts: Prompt embeddings of each class, ``C`` arrays of shape ``(P_c, D)``; brought to unit length.
        scoring: See the table of this module.
        task: Whether the classes exclude one another (all but ``"multi-label"``).
        scale: What the model multiplies cosines by before a softmax, ``1 / temperature``; z-scores are
            taken as they are.
        absent: For ``pairs``, prompt embeddings that deny each class, like ``prompts``.
        local: For ``gloria``, local scores of each class's prompts, ``C`` arrays of shape ``(N, P_c)``.

    Returns:
        Scores and probabilities.

    Raises:
        ValueError: If shapes disagree, a class has no prompt, a number is not finite, ``scale`` is not positive,
            or what a scoring needs is missing.
    """
    if scoring == "combined":
        raise ValueError("scoring='combined' needs the scale of a run's experts: call combined_scores.")
    _check_choice(scoring, task, scale)
    unit_images = _unit("images", images)
    if not prompts:
        raise ValueError("prompts must hold one array per class, got none.")
    classes = _unit_classes("prompts", prompts, unit_images.shape[1])
    if scoring == "pairs":
        present = _mean_cosines(unit_images, classes)
        against = _mean_cosines(unit_images, _absent(absent, len(classes), unit_images.shape[1]))
        probs = expit(scale * (present - against))
        return ClassScores(probs, probs)
    if scoring == "gloria":
        scores = _gloria(unit_images, classes, local)
        return ClassScores(scores, _probabilities(scores, task))
    scores = _mean_cosines(unit_images, classes) if scoring == "mean" else _max_cosines(unit_images, classes)
    return ClassScores(scores, _probabilities(scale * scores, task))


class Parts(NamedTuple):
    """What images, or the reference images of a run, score for the prompts of each class.

    Attributes:
        cosines: ``(N, C)``, with the mean embedding of each class.
        local: ``(N, C)``, mean local score of each class's prompts.
        experts: ``(N,)``.
    """

    cosines: Array
    local: Array
    experts: NDArray[np.int64]

    @classmethod
    def of(
        cls, images: Array, prompts: Sequence[Array], local: Sequence[Array], experts: Sequence[int] | NDArray[np.int64]
    ) -> "Parts":
        """Puts the parts together.

        Args:
            images: ``(N, D)``.
            prompts: ``C`` arrays of shape ``(P_c, D)``.
            local: ``C`` arrays of shape ``(N, P_c)``.
            experts: ``(N,)``.
        """
        unit = _unit("images", images)
        means = class_embeddings(_unit_classes("prompts", prompts, unit.shape[1]))
        local_means = np.stack([one.mean(axis=1) for one in local], axis=1)
        return cls(unit @ means.T, local_means, np.asarray(experts, np.int64))


def combined_scores(
    images: Parts, reference: Parts, *, num_experts: int, task: Task = "multi-class", weight: float = LOCAL_WEIGHT
) -> ClassScores:
    """Scores images by cosine and local score, each brought to scale by training images of the image's expert.

    The score of an image depends on no other image of the call.

    Args:
        images: ``N`` images.
        reference: The training images.
        num_experts: K.
        task: Whether the classes exclude one another.
        weight: Of the local score, from 0 to 1.
    """
    cosines = scale_of(reference.cosines, reference.experts, num_experts).of(images.cosines, images.experts)
    local = scale_of(reference.local, reference.experts, num_experts).of(images.local, images.experts)
    scores = (1 - weight) * cosines + weight * local
    return ClassScores(scores, _probabilities(scores, task))


def class_embeddings(prompts: Sequence[Array]) -> Array:
    """Computes the renormalised mean of each class's unit prompt embeddings, shape ``(C, D)``.

    Args:
        prompts: ``C`` arrays of shape ``(P_c, D)`` with rows of unit length.
    """
    means = np.stack([one.mean(axis=0) for one in prompts])
    return means / np.maximum(np.linalg.norm(means, axis=1, keepdims=True), TINY)


def z_scores(values: Array) -> Array:
    """Brings columns to mean 0 and standard deviation 1; a column without spread becomes 0.

    Args:
        values: Shape ``(N, C)``.
    """
    centred = values - values.mean(axis=0)
    spread = values.std(axis=0)
    differs = spread > ROUNDING * np.abs(values).max(axis=0)
    return np.divide(centred, spread, out=np.zeros_like(centred), where=differs)


def _mean_cosines(images: Array, prompts: Sequence[Array]) -> Array:
    return images @ class_embeddings(prompts).T


def _max_cosines(images: Array, prompts: Sequence[Array]) -> Array:
    return np.stack([(images @ one.T).max(axis=1) for one in prompts], axis=1)


def _gloria(images: Array, prompts: Sequence[Array], local: Sequence[ArrayLike] | None) -> Array:
    if local is None:
        raise ValueError("local must hold the local scores of every class's prompts for scoring='gloria', got None.")
    if len(images) < 2:
        raise ValueError(
            "scoring='gloria' takes z-scores over the images and needs at least two, got 1. "
            "Use scoring='mean' for single images."
        )
    arrays = [np.asarray(one, np.float64) for one in local]
    expected = [(len(images), len(one)) for one in prompts]
    if [one.shape for one in arrays] != expected:
        raise ValueError(f"local must have shapes {expected}, images x prompts, got {[one.shape for one in arrays]}.")
    if not all(np.isfinite(one).all() for one in arrays):
        raise ValueError("local must be finite, got NaN or infinity. Check the model for overflow.")
    best = np.stack([one.max(axis=1) for one in arrays], axis=1)
    return (z_scores(_max_cosines(images, prompts)) + z_scores(best)) / 2


def _probabilities(logits: Array, task: Task) -> Array:
    return expit(logits) if task == "multi-label" else softmax(logits, axis=1)


def _absent(absent: Sequence[ArrayLike] | None, num_classes: int, dim: int) -> list[Array]:
    if absent is None or len(absent) != num_classes:
        got = "None" if absent is None else f"{len(absent)}"
        raise ValueError(f"absent must hold one array per class ({num_classes}) for scoring='pairs', got {got}.")
    return _unit_classes("absent", absent, dim)


def _unit_classes(name: str, classes: Sequence[ArrayLike], dim: int) -> list[Array]:
    return [_unit(f"{name}[{c}]", one, dim) for c, one in enumerate(classes)]


def _unit(name: str, vectors: ArrayLike, dim: int | None = None) -> Array:
    rows = np.asarray(vectors, np.float64)
    if rows.ndim != 2 or 0 in rows.shape or rows.shape[1] != (dim or rows.shape[1]):
        expected = "(count, dim)" if dim is None else f"(count, {dim})"
        raise ValueError(f"{name} must have shape {expected} with a count of at least 1, got {rows.shape}.")
    if not np.isfinite(rows).all():
        raise ValueError(f"{name} must be finite, got NaN or infinity. Check the model for overflow.")
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), TINY)


def _check_choice(scoring: str, task: str, scale: float) -> None:
    for name, value, allowed in (("scoring", scoring, get_args(Scoring)), ("task", task, get_args(Task))):
        if value not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}.")
    if not 0 < scale < np.inf:
        raise ValueError(f"scale must be a positive number, got {scale}.")
