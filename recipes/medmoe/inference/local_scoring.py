"""Local scores of images against texts, with the expert that the run's routing gives each pair.

Only local features depend on the routing: the global embedding of an image is the same whichever expert runs.
"""

from typing import Any

import torch
from torch import Tensor

from moekit import Routing
from recipes.data.studies import StudySplit
from recipes.medmoe.features import ImageFeatures, TextFeatures
from recipes.medmoe.inference.released import ReleasedSession
from recipes.medmoe.inference.run import Session
from recipes.medmoe.inference.session import ModelSession
from recipes.medmoe.label_router import label_routing


def modality_labels(session: ModelSession, split: StudySplit, modality: str | None) -> Tensor:
    """Returns the expert that belongs to each image's kind.

    Args:
        session: The run.
        split: Images, which may name their own kinds (``modalities``).
        modality: Kind of all of them; ``None`` asks the split.

    Returns:
        ``(N,)`` int64 on the session's device.

    Raises:
        ValueError: If the kind of an image is not known, or none that the run has an expert for.
    """
    kinds = [modality] * len(split) if modality is not None else list(getattr(split, "modalities", [None] * len(split)))
    unknown = sum(kind is None for kind in kinds)
    if unknown:
        raise ValueError(
            f"modality: the expert is chosen by the kind of the image, which is not known for {unknown} of "
            f"{len(split)} images. Give modality, one of {', '.join(session.modalities)} (--modality)."
        )
    unsupported = sorted({kind for kind in kinds if kind not in session.modalities})
    if unsupported:
        raise ValueError(
            f"modality: the run has no expert for {', '.join(unsupported)}; it has experts for "
            f"{', '.join(session.modalities)} (--modality)."
        )
    return torch.tensor([session.modalities.index(kind) for kind in kinds], device=session.device)


def routed_local_scores(
    session: ModelSession, image: ImageFeatures, text: TextFeatures, labels: Tensor | None = None
) -> Tensor:
    """Scores every image against every text by words and regions.

    Routed by image or label, an image has one expert for all texts. Routed by text, every image runs through the
    expert of each text: once per distinct decision, which is the expert alone unless the router scales its output.

    Args:
        session: The run.
        image: ``B`` images.
        text: ``T`` texts.
        labels: ``(B,)`` from :func:`modality_labels`, where the label decides.

    Returns:
        ``(B, T)``.
    """
    if isinstance(session, ReleasedSession):
        return session.word_region_scores(image, text)
    session = as_run(session)
    model = session.model
    if session.route_on == "none":
        return session.word_region_scores(session.local(image), text)
    if session.route_on != "text":
        local = model.local(image, model.route(image=image, labels=labels))
        return session.word_region_scores(local, text)
    routing = model.route(text=text)
    assert routing is not None
    count = len(image.embedding)
    scores = text.embedding.new_empty(count, len(text.embedding))
    for rows in _same_decisions(routing):
        local = model.local(image, _repeat(routing, rows[0], count))
        scores[:, rows] = session.word_region_scores(local, TextFeatures(*(field[rows] for field in text))).to(
            scores.dtype
        )
    return scores


def experts_used(session: ModelSession, image: ImageFeatures, labels: Tensor | None = None) -> list[int]:
    """Returns the expert of each image where images or labels decide; 0 for all without experts to choose from.

    Args:
        session: The run.
        image: ``B`` images.
        labels: As for :func:`routed_local_scores`.
    """
    routing = as_run(session).model.route(image=image, labels=labels)
    return [0] * len(image.embedding) if routing is None else routing.expert_ids[:, 0].tolist()


def prompt_experts(session: ModelSession, text: TextFeatures) -> list[int]:
    """Returns the expert of each text where texts decide.

    Args:
        session: The run.
        text: ``T`` texts.
    """
    routing = as_run(session).model.route(text=text)
    assert routing is not None
    return routing.expert_ids[:, 0].tolist()


def mean_regions(session: ModelSession, image: ImageFeatures, labels: Tensor | None) -> Tensor:
    """Computes the mean over the regions of each image's expert, or of a model without experts.

    Args:
        session: The run.
        image: ``B`` images.
        labels: ``(B,)`` from :func:`modality_labels`; the expert of each image unless the images decide.

    Returns:
        ``(B, D)``.
    """
    if session.route_on == "none":
        own = session if isinstance(session, ReleasedSession) else as_run(session)
        return own.regions(image).mean((2, 3))
    model = as_run(session).model
    known = None if labels is None else label_routing(labels, model.config.num_experts)
    routing = model.route(image=image) if known is None else known
    return model.local(image, routing).regions.mean((2, 3))


def describe_routing(session: ModelSession, experts: list[int], of: str, modality: str | None) -> dict[str, Any]:
    """Describes the routing, for a result.

    Args:
        session: The run.
        experts: The expert of each image or prompt.
        of: ``"images"`` or ``"prompts"``: whose experts they are.
        modality: Kind of all images, where it is known.

    Returns:
        ``by``, ``of``, ``modality``, ``counts`` (how often each expert was chosen) and ``experts`` (the kind
        that each was trained for, ``None`` for one without).
    """
    number = as_run(session).model.config.num_experts
    counts = torch.bincount(torch.tensor(experts, dtype=torch.int64), minlength=number)
    names = [session.modalities[k] if k < len(session.modalities) else None for k in range(number)]
    by = session.route_on
    return {"by": by, "of": of, "modality": modality, "experts": names, "counts": counts.tolist()}


def as_run(session: ModelSession) -> Session:
    """Returns the session of a pretrained run.

    Raises:
        ValueError: Of another model.
    """
    if not isinstance(session, Session):
        raise ValueError(f"{session.name} is a released model: this needs a pretrained run of this recipe.")
    return session


def _same_decisions(routing: Routing) -> list[list[int]]:
    """Groups the rows of equal expert and gate."""
    groups: dict[tuple[int, float], list[int]] = {}
    for row, key in enumerate(zip(routing.expert_ids[:, 0].tolist(), routing.gates[:, 0].tolist(), strict=True)):
        groups.setdefault(key, []).append(row)
    return list(groups.values())


def _repeat(routing: Routing, row: int, count: int) -> Routing:
    """Repeats one row's decision for ``count`` images."""

    def copies(field: Tensor) -> Tensor:
        return field[row : row + 1].expand(count, *field.shape[1:]).contiguous()

    logits = None if routing.logits is None else copies(routing.logits)
    return Routing(
        copies(routing.gates), copies(routing.expert_ids), logits, copies(routing.probs), copies(routing.valid)
    )
