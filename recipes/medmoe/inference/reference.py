"""A few training images as a run sees them, kept in its folder: the scores of any text are brought to their scale.

What is kept are embeddings and features of regions, no pixels. They depend on the training split and on the weights
alone, so a score that is brought to scale by them does not depend on the other images of a call.
"""

from collections.abc import Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from recipes.data.pairs import BadSample, PairStream
from recipes.data.studies import Study
from recipes.medmoe.features import LocalFeatures, TextFeatures
from recipes.medmoe.inference.local_scoring import experts_used, modality_labels
from recipes.medmoe.inference.run import Session
from recipes.medmoe.zero_shot.scale import FEWEST
from recipes.shared.kept_arrays import keep, read_kept

MOST = 256
"""Images that are kept at most."""

MOST_BYTES = 64 * 2**20
"""Bytes of their regions at most; large maps are kept of fewer images."""


class Reference(NamedTuple):
    """``n`` training images.

    Attributes:
        embeddings: ``(n, D)``.
        experts: ``(n,)``, the expert of each.
        local: What these experts made of them.
    """

    embeddings: torch.Tensor
    experts: NDArray[np.int64]
    local: LocalFeatures


def load_reference(session: Session, checkpoint: str) -> Reference:
    """Returns the reference of a run: the one in its folder, or one that is made of its training split now.

    Args:
        session: The run.
        checkpoint: Which weights the session has.

    Raises:
        ValueError: If the run routes on the report, so that training images have no expert of their own; or there is no
            reference and the training data are missing or changed.
    """
    if session.route_on == "text":
        raise ValueError(
            "scoring='combined' needs the expert of each image, but the run chooses experts by the report: use another "
            "--scoring."
        )
    if session.model.config.local_branch == "none":
        raise ValueError(
            "scoring='combined' needs local scores, but the run compares whole images and texts alone: use another "
            "--scoring."
        )
    path, key = session.run / "reference" / f"{checkpoint}.npz", session.weights_checksum(checkpoint)
    kept = read_kept(path, key)
    if kept is None:
        kept = _compute(session)
        keep(path, key, kept)
    return _reference(session, kept)


@torch.no_grad()
def reference_scores(session: Session, reference: Reference, text: TextFeatures) -> NDArray[np.float64]:
    """Returns the local scores of the reference images against texts, ``(n, T)``."""
    return session.word_region_scores(reference.local, text).double().cpu().numpy()


@torch.no_grad()
def _compute(session: Session) -> dict[str, Any]:
    split = _Listed(_chosen(session))
    labels = modality_labels(session, split, None) if session.route_on == "label" else None
    parts: dict[str, list[NDArray[Any]]] = {}
    for rows, image in session.image_batches(split, title="reference"):
        own = None if labels is None else labels[rows]
        local = session.model.local(image, session.model.route(image=image, labels=own))
        values = {"embeddings": image.embedding, "regions": local.regions.half(), "visible": local.visible}
        for name, value in values.items():
            if value is not None:
                parts.setdefault(name, []).append(value.cpu().numpy())
        parts.setdefault("experts", []).append(np.array(experts_used(session, image, own), np.int64))
    return {name: np.concatenate(values) for name, values in parts.items()}


@torch.no_grad()
def _reference(session: Session, kept: dict[str, Any]) -> Reference:
    tensors = {name: torch.from_numpy(kept[name]).to(session.device) for name in kept if name != "experts"}
    visible: Any = tensors.get("visible")
    nothing: Any = None  # neither routing nor statistics take part in a score
    temperature = _of_a_blank(session).temperature
    local = LocalFeatures(tensors["regions"].float(), nothing, nothing, visible=visible, temperature=temperature)
    return Reference(tensors["embeddings"].float(), kept["experts"], local)


def _of_a_blank(session: Session) -> LocalFeatures:
    """Returns what an expert makes of a black image: for the size of its maps and the trained first temperature."""
    blank = np.zeros((session.model.image_encoder.spec.size,) * 2, np.uint8)
    image = session.images([blank])
    labels = torch.zeros(1, dtype=torch.int64, device=session.device)
    return session.model.local(image, session.model.route(image=image, labels=labels))


def _chosen(session: Session) -> list[Study]:
    """Returns training studies of all modalities about equally often, the first ones of each."""
    train = session.source().train
    most = max(FEWEST, min(MOST, MOST_BYTES // (2 * _of_a_blank(session).regions.numel())))
    if isinstance(train, PairStream):
        samples = train.iterate()
        return list(islice((sample for sample in samples if not isinstance(sample, BadSample)), most))
    places: dict[str | None, list[int]] = {}
    for row, kind in enumerate(train.modalities):
        places.setdefault(kind, []).append(row)
    if session.route_on == "label":
        places.pop(None, None)
    each = -(-most // max(1, len(places)))
    return [train[row] for rows in places.values() for row in rows[:each]]


class _Listed:
    """Studies in memory as a split."""

    def __init__(self, studies: Sequence[Study]) -> None:
        self.studies = studies
        self.ids = [study.id for study in studies]
        self.groups = [study.group for study in studies]
        self.texts = [study.text for study in studies]
        self.modalities = [study.modality for study in studies]
        self.labels = np.zeros((len(studies), 0), np.float32)

    def __len__(self) -> int:
        return len(self.studies)

    def __getitem__(self, row: int) -> Study:
        return self.studies[row]
