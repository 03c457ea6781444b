"""How a run uses its experts: the measures of the load, read against the modalities that the images are of."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recipes.medmoe.config import RouteOn
from recipes.medmoe.data.batches import UNKNOWN
from recipes.shared.scores.expert_load import LEAST_SLOTS, LIVE_SHARE, load_measures


def expert_load(
    experts: NDArray[np.int64], labels: NDArray[np.int64], modalities: Sequence[str], num_experts: int, by: RouteOn
) -> dict[str, Any]:
    """Measures the load of the experts over the images of a split.

    Each image goes to one expert, and an expert is meant for one modality: with three modalities in the data, three
    experts with work are all there should be. So an expert without images is no fault by itself. What is warned of is
    fewer live experts than modalities, where these are known, and any dead expert where they are not.

    Args:
        experts: Expert of each image, ``(N,)``.
        labels: Place of each image's modality in ``modalities``, `UNKNOWN` where it is not known, ``(N,)``.
        modalities: Their names; expert k is meant for the k-th.
        num_experts: ``K``.
        by: What chooses the experts. Labels leave a router nothing to do: there is no warning.

    Returns:
        ``load`` (share of each expert in the images), ``load_entropy``, ``max_violation`` and ``live_experts`` of
        :func:`~recipes.shared.scores.expert_load.load_measures`, ``live_expected`` (modalities that have the images of
        a live expert; ``None`` where none is known) and ``warning`` (in words, or ``None``).
    """
    counts = np.bincount(experts, minlength=num_experts)
    measures = load_measures(counts, top_k=1, decisions=len(experts))
    known = labels != UNKNOWN
    expected = warning = None
    if known.any():
        occurring = np.bincount(labels[known], minlength=len(modalities)) / known.sum()
        common = np.flatnonzero(occurring >= LIVE_SHARE / num_experts).tolist()
        expected = len(common)
        if measures["live_experts"] < expected and len(experts) >= LEAST_SLOTS * num_experts:
            warning = _warning(experts, labels, modalities, common, measures["live_experts"])
    else:
        warning = measures["warning"]
    return {
        "load": (counts / len(experts)).tolist(),
        **{name: measures[name] for name in ("load_entropy", "max_violation", "live_experts")},
        "live_expected": expected,
        "warning": None if by == "label" else warning,
    }


def _warning(
    experts: NDArray[np.int64],
    labels: NDArray[np.int64],
    modalities: Sequence[str],
    common: Sequence[int],
    live: int,
) -> str:
    """Says which modalities share an expert."""
    sharing: dict[int, list[str]] = {}
    for place in common:
        busiest = int(np.bincount(experts[labels == place]).argmax())
        sharing.setdefault(busiest, []).append(modalities[place])
    shared = [f"{', '.join(names)} by expert {expert}" for expert, names in sharing.items() if len(names) > 1]
    verb = "lives" if live == 1 else "live"
    computed = f": most images of {'; of '.join(shared)} are computed together" if shared else ""
    return f"{live} of the experts {verb}, but the images are of {len(common)} modalities{computed}"
