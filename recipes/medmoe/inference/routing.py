"""Which expert is chosen for which kind of image: the routing matrix of a split, its purity, the router's accuracy."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from recipes.data.pairs import PairSplit
from recipes.medmoe.data.batches import UNKNOWN, PairReader
from recipes.medmoe.inference.expert_load import expert_load
from recipes.medmoe.inference.run import Session

PURITY_IS = "share of the images at the expert of their modality, under the best one-to-one match of the two"


@torch.no_grad()
def chosen_experts(session: Session, split: PairSplit) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Returns the expert of every pair of a split, and its probability, by what the run routes on.

    Args:
        session: The run.
        split: The pairs.

    Returns:
        Experts ``(N,)`` and probabilities ``(N,)``.
    """
    model, route_on = session.model, session.config.model.route_on
    if route_on == "text":
        routings = [model.route(text=session.texts([str(text) for text in split.texts]))]
    elif route_on == "label":
        labels = torch.tensor(labels_of(session, split), device=session.device)
        routings = [model.route(labels=labels)]
    else:
        routings = [model.route(image=image) for _, image in session.image_batches(split, title="routing")]
    experts = torch.cat([routing.expert_ids[:, 0] for routing in routings])
    probs = torch.cat([routing.probs.gather(1, routing.expert_ids)[:, 0] for routing in routings])
    return experts.cpu().numpy(), probs.float().cpu().numpy()


def labels_of(session: Session, split: PairSplit) -> list[int]:
    """Returns the place of each pair's modality, -100 where it is not known."""
    model = session.model
    reader = PairReader(model.modalities, model.text_encoder.tokenizer, model.image_encoder.spec, 1)
    return [reader.label(modality) for modality in split.modalities]


def routing_report(session: Session, split: PairSplit) -> dict[str, Any]:
    """Describes the routing of a split, for ``metrics.json``.

    Returns:
        ``modalities`` (those that occur), ``experts`` (K), ``matrix`` (share of each modality's images at each
        expert), ``counts`` (images of each modality), ``accuracy`` (share of the images whose expert has the
        name of their modality), ``purity``, ``purity_is``, ``confidence`` (mean probability of the chosen expert)
        and ``by`` (what was routed on). Images of unknown modality are left out; without any other the figures
        are ``None``. And, of all images, the measures of :func:`~recipes.medmoe.inference.expert_load.expert_load`.
    """
    experts, probs = chosen_experts(session, split)
    labels = np.array(labels_of(session, split))
    known = labels != UNKNOWN
    present = sorted(set(labels[known].tolist()))
    counts = routing_counts(experts[known], labels[known], present, session.config.model.num_experts)
    shares = counts / counts.sum(1, keepdims=True) if len(present) else counts
    return {
        "modalities": [session.modalities[place] for place in present],
        "experts": session.config.model.num_experts,
        "matrix": shares.tolist(),
        "counts": counts.sum(1).astype(int).tolist(),
        "accuracy": float((experts[known] == labels[known]).mean()) if known.any() else None,
        "purity": purity(counts) if known.any() else None,
        "purity_is": PURITY_IS,
        "confidence": float(probs.mean()),
        "by": session.config.model.route_on,
        **expert_load(
            experts, labels, session.modalities, session.config.model.num_experts, session.config.model.route_on
        ),
    }


def routing_counts(
    experts: NDArray[np.int64], labels: NDArray[np.int64], present: Sequence[int], num_experts: int
) -> NDArray[np.float64]:
    """Counts the images of each modality at each expert, ``(modalities that occur, K)``."""
    rows = [np.bincount(experts[labels == place], minlength=num_experts) for place in present]
    return np.array(rows, dtype=np.float64).reshape(len(present), num_experts)


def purity(counts: NDArray[np.float64]) -> float:
    """Computes the share of the images at their modality's expert, each expert matched with one modality at most.

    1 when every modality has an expert of its own; the largest modality's share when all images go to one
    expert. (Cluster purity without the one-to-one match would call the latter pure, seen from the modalities.)
    """
    rows, columns = linear_sum_assignment(-counts)
    return float(counts[rows, columns].sum() / counts.sum())
