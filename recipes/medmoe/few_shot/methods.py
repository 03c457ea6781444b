"""Classifiers of a few labelled embeddings. Letters: N images, M labelled ones, C classes, D width.

- ``prototypes``: cosine with the renormalised mean of the class's labelled embeddings (Snell et al. 2017, Prototypical
  networks, with cosines).
- ``linear``: logistic regression on the embeddings, its weight decay chosen inside the labelled images.
- ``tip-adapter``: ``scale * cosine(image, prompts) + alpha * sum exp(-beta * (1 - cosine(image, labelled)))`` over the
  class's labelled images, without training (Zhang et al. 2022, Tip-Adapter).

Deviation of ``tip-adapter``: the sum is divided by the number of labelled images of the class, times the mean number,
so that a class with fewer images is not held back; with equal numbers it is the published form. Published alpha and
beta are searched on a validation set; here they are options, by default the 1.0 and 5.5 with which that search starts.
"""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from recipes.medmoe.probe.linear import fit_probe, predict_probe
from recipes.medmoe.probe.selection import choose_inside

Method = Literal["prototypes", "linear", "tip-adapter"]
Array = NDArray[np.float64]
TINY = 1e-12


class Labelled(NamedTuple):
    """Labelled embeddings.

    Attributes:
        embeddings: ``(M, D)``, rows of length 1.
        classes: ``(M,)``, the class of each; every class occurs.
        groups: The patient of each.
        seed: Of the draw.
    """

    embeddings: Array
    classes: NDArray[np.int64]
    groups: Sequence[str]
    seed: int


class Texts(NamedTuple):
    """What texts know of the classes.

    Attributes:
        classes: ``(C, D)``, the renormalised mean embedding of each class's prompts.
        scale: What the model multiplies cosines by.
        alpha: Weight of the labelled images.
        beta: How quickly their weight falls with distance.
    """

    classes: Array
    scale: float
    alpha: float
    beta: float


def prototypes(images: Array, labelled: Labelled, texts: Texts) -> Array:
    """Computes probabilities ``(N, C)`` by the nearest class mean: a softmax of scaled cosines."""
    means = np.stack([_unit(labelled.embeddings[labelled.classes == c].mean(axis=0)) for c in _range(labelled)])
    return softmax(texts.scale * images @ means.T, axis=1)


def linear(images: Array, labelled: Labelled, texts: Texts) -> Array:
    """Computes probabilities ``(N, C)`` by logistic regression; texts are not used."""
    del texts
    labels = np.eye(int(labelled.classes.max()) + 1)[labelled.classes]
    groups = list(labelled.groups)
    chosen = choose_inside(labelled.embeddings, labels, groups, "multi-class", seed=labelled.seed, standardise=False)
    probe = fit_probe(labelled.embeddings, labels, "multi-class", chosen.weight_decay, standardise=False)
    return predict_probe(probe, images, "multi-class")


def tip_adapter(images: Array, labelled: Labelled, texts: Texts) -> Array:
    """Computes probabilities ``(N, C)`` by prompts and labelled images together; see the module."""
    near = np.exp(-texts.beta * (1 - images @ labelled.embeddings.T))
    member = np.eye(int(labelled.classes.max()) + 1)[labelled.classes]
    counts = member.sum(axis=0)
    cache = near @ (member / counts * counts.mean())
    return softmax(texts.scale * images @ texts.classes.T + texts.alpha * cache, axis=1)


METHODS: dict[str, Callable[[Array, Labelled, Texts], Array]] = {
    "prototypes": prototypes,
    "linear": linear,
    "tip-adapter": tip_adapter,
}
"""The classifiers by name."""


def _range(labelled: Labelled) -> range:
    return range(int(labelled.classes.max()) + 1)


def _unit(vector: Array) -> Array:
    return vector / max(float(np.linalg.norm(vector)), TINY)
