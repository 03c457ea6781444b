"""Frozen features of labelled sets, computed once and kept in ``features/SET-split.npz`` of the run."""

import hashlib
import json
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from recipes.data.evaluation.types import EvaluationSet
from recipes.data.studies import StudySplit
from recipes.medmoe.inference.local_scoring import experts_used, mean_regions, modality_labels
from recipes.medmoe.inference.session import ModelSession
from recipes.shared.kept_arrays import keep, read_kept


class Features(NamedTuple):
    """Features of the ``N`` studies of a split, in its order.

    Attributes:
        pooled: ``(N, C_L)``, the image encoder's pooled output.
        regions: ``(N, D)``, mean over the regions of each image's expert; ``None`` where no expert is known.
        experts: ``(N,)``, the expert of each image; ``None`` likewise, and of a model without experts.
    """

    pooled: NDArray[np.float32]
    regions: NDArray[np.float32] | None
    experts: NDArray[np.int64] | None

    def matrix(self, kind: str) -> NDArray[np.float32]:
        """Returns the columns of one kind: ``"global"``, ``"local"`` or ``"both"`` beside one another.

        Raises:
            ValueError: If local features are asked for and there are none.
        """
        if kind == "global":
            return self.pooled
        if self.regions is None:
            raise ValueError(f"features={kind!r} needs the expert of every image, which is not known.")
        return self.regions if kind == "local" else np.concatenate([self.pooled, self.regions], axis=1)


def set_features(
    session: ModelSession, one: EvaluationSet, split: str, *, local: bool, modality: str | None, checkpoint: str
) -> Features:
    """Returns the features of a split of a set, from the run's folder where they fit.

    Kept features are used again only if they were made by the same weights, of the same studies (ids, labels,
    and the pixels of the first and the last) and with the same choice of experts; else they are made anew.

    Args:
        session: The run.
        one: The set.
        split: Which studies.
        local: Whether to compute features of the regions.
        modality: Kind of the images, where the set does not say it.
        checkpoint: Which weights the session has.

    Raises:
        ValueError: If local features are asked for and the expert of an image is not known.
    """
    studies = one.splits[split]
    kind = modality or one.modality
    labels = _labels(session, studies, kind) if local else None
    key = _key(session, studies, checkpoint, None if labels is None else labels.tolist(), local=local)
    path = session.run / "features" / f"{one.name}-{split}.npz"
    kept = read_kept(path, key)
    if kept is not None:
        return Features(kept["pooled"], kept.get("regions"), kept.get("experts"))
    features = _compute(session, studies, labels, local=local, title=f"{one.name} {split}")
    keep(path, key, {name: value for name, value in features._asdict().items() if value is not None})
    return features


def _labels(session: ModelSession, studies: StudySplit, kind: str | None) -> torch.Tensor | None:
    """Returns the labels that choose the experts; ``None`` where the images do."""
    by = session.route_on
    if by in ("image", "none"):
        return None
    try:
        return modality_labels(session, studies, kind)
    except ValueError as error:
        if by == "label":
            raise
        raise ValueError(
            "features: the run chooses experts by the report, and a labelled image has none; by its kind instead "
            "they cannot be chosen either. Use features='global' (--features global), or name the kind (--modality). "
            f"({error})"
        ) from error


@torch.no_grad()
def _compute(
    session: ModelSession, studies: StudySplit, labels: torch.Tensor | None, *, local: bool, title: str
) -> Features:
    pooled, regions, experts = [], [], []
    for rows, image in session.image_batches(studies, title=title):
        pooled.append(image.pooled.float().cpu().numpy())
        if local:
            own = None if labels is None else labels[rows]
            regions.append(mean_regions(session, image, own).float().cpu().numpy())
            if session.route_on != "none":
                experts += experts_used(session, image) if own is None else own.tolist()
    if not local:
        return Features(np.concatenate(pooled), None, None)
    return Features(np.concatenate(pooled), np.concatenate(regions), np.array(experts) if experts else None)


def _key(session: ModelSession, studies: StudySplit, checkpoint: str, labels: list[int] | None, *, local: bool) -> str:
    content = hashlib.sha256()
    for row in (0, len(studies) - 1):
        content.update(studies[row].image.tobytes())
    content.update(np.ascontiguousarray(studies.labels).tobytes())
    content.update(json.dumps([list(studies.ids), labels]).encode())
    origin = {
        "weights": session.weights_checksum(checkpoint),
        "studies": content.hexdigest(),
        "experts": session.route_on if labels is None else "label",
        "local": local,
    }
    return json.dumps(origin, sort_keys=True)
