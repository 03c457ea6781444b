"""What a run computes for a study: the map of every word, the weights of the scales and the expert."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from moekit import Routing
from recipes.data.studies import Box, Study
from recipes.medmoe.data.batches import UNKNOWN
from recipes.medmoe.explain.pictures import Explanation
from recipes.medmoe.explain.pointing import point
from recipes.medmoe.explain.word_maps import distinct_words, finding_words, word_maps
from recipes.medmoe.features import ImageFeatures, TextFeatures
from recipes.medmoe.inference.local_scoring import as_run
from recipes.medmoe.inference.session import ModelSession

MeanMaps = dict[int, NDArray[np.float32]]
"""The mean map of each expert, ``(h, w)``; see :func:`recipes.medmoe.explain.from_training.mean_maps`."""

MOST_WORDS = 4
"""Maps shown per study: those of its findings first, then the most peaked of other words."""


@dataclass(frozen=True)
class Seen:
    """One study with what the model computed for it. N words, L scales, K experts.

    Attributes:
        study: The study, its boxes in pixels of ``picture``.
        picture: The letter-boxed image.
        words: The report's words.
        maps: Shape ``(N, h, w)``, one per word.
        scale_weights: Shape ``(L, h, w)``, β.
        expert_probs: Shape ``(K,)``.
        expert: The one that was run; -1 of a model without experts, whose L and K are 0.
    """

    study: Study
    picture: NDArray[np.uint8]
    words: list[str]
    maps: NDArray[np.float32]
    scale_weights: NDArray[np.float32]
    expert_probs: NDArray[np.float32]
    expert: int

    def finding_map(self, finding: str) -> NDArray[np.float32] | None:
        """Returns the mean map of the words that name a finding, or ``None`` if the report does not."""
        places = finding_words(finding, self.words)
        return self.maps[places].mean(0) if places else None

    def findings(self) -> dict[str, list[Box]]:
        """Returns the boxes of each finding."""
        by_finding: dict[str, list[Box]] = {}
        for box in self.study.boxes:
            by_finding.setdefault(box.finding, []).append(box)
        return by_finding


def look(session: ModelSession, studies: Sequence[Study], *, means: MeanMaps | None = None) -> list[Seen]:
    """Runs the model over studies.

    Args:
        session: The run.
        studies: At most one batch of them; none gives none.
        means: Subtracted from the maps of each expert's images; a map's lowest cell is 0 then.

    Raises:
        ValueError: If a study has no text, or the run routes on the label and a modality is not among its own.
    """
    if not studies:
        return []
    for study in studies:
        if study.text is None or not study.text.strip():
            raise ValueError(f"study {study.id!r} has no text, so there are no words to look at.")
    pictures = [session.fit(study.image) for study in studies]
    images, text = session.images(pictures), session.texts([str(study.text) for study in studies])
    routing = _route(session, images, text, studies)
    maps = word_maps(session, images, text, routing)
    probs = torch.zeros(len(studies), 0) if routing is None else routing.probs
    outputs = []
    for row, study in enumerate(studies):
        words = session.words(str(study.text))
        arrays = [part[row].float().cpu().numpy() for part in (maps.maps, maps.scale_weights, probs)]
        expert = -1 if routing is None else int(routing.expert_ids[row, 0])
        outputs.append(
            Seen(
                study=replace(study, boxes=session.boxes(study)),
                picture=pictures[row],
                words=words,
                maps=_above_mean(arrays[0][: len(words)], None if means is None else means.get(expert)),
                scale_weights=arrays[1],
                expert_probs=arrays[2],
                expert=expert,
            )
        )
    return outputs


def _above_mean(maps: NDArray[np.float32], mean: NDArray[np.float32] | None) -> NDArray[np.float32]:
    """Returns maps ``(N, h, w)`` less a mean map, each shifted so that its lowest cell is 0."""
    if mean is None:
        return maps
    above = maps - mean
    return above - above.min((1, 2), keepdims=True)


def explanation(one: Seen, tolerance: float = 0.0) -> Explanation:
    """Chooses what to show of a study: its findings' maps, then the most peaked maps of other words.

    Args:
        one: The study.
        tolerance: Pixels by which boxes are widened, as in the pointing game.
    """
    size = one.picture.shape[0]
    shown: list[tuple[str, NDArray[np.float32], float]] = []
    used: set[int] = set()
    for finding, boxes in one.findings().items():
        values = one.finding_map(finding)
        if values is not None:
            hit = point(values, boxes, size, group=one.study.group, tolerance=tolerance).hit
            shown.append((finding, values, hit))
            used |= set(finding_words(finding, one.words))
    others = {word: one.maps[at].mean(0) for word, at in distinct_words(one.words).items() if not used & set(at)}
    peaked = sorted(others, key=lambda word: -float(others[word].max()))[: max(0, MOST_WORDS - len(shown))]
    shown = [*shown, *((word, others[word], float("nan")) for word in others if word in peaked)][:MOST_WORDS]
    return Explanation(
        id=one.study.id,
        text=str(one.study.text),
        modality=one.study.modality,
        image=one.picture,
        boxes=one.study.boxes,
        words=tuple(word for word, _, _ in shown),
        maps=np.stack([values for _, values, _ in shown]) if shown else one.maps[:0],
        hits=np.array([hit for _, _, hit in shown], np.float32),
        scale_weights=one.scale_weights,
        expert_probs=one.expert_probs,
        expert=one.expert,
    )


@torch.no_grad()
def _route(
    session: ModelSession, images: ImageFeatures, text: TextFeatures, studies: Sequence[Study]
) -> Routing | None:
    labels = None
    if session.route_on == "none":
        return None
    if session.route_on == "label":
        places = {modality: place for place, modality in enumerate(session.modalities)}
        known = [places.get(str(study.modality), UNKNOWN) for study in studies]
        labels = torch.tensor(known, device=session.device)
    return as_run(session).model.route(image=images, text=text, labels=labels)
