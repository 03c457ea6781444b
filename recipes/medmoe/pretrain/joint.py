"""The pairs of all micro-batches of a step as one batch: what the losses need of them."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from moekit import RouterStats, Routing
from recipes.medmoe.data.batches import Batch
from recipes.medmoe.data.tokens import NO_WORD, Tokens
from recipes.medmoe.features import ImageFeatures, LocalFeatures, TextFeatures


class PairFeatures(NamedTuple):
    """What the model makes of pairs."""

    image: ImageFeatures
    text: TextFeatures
    local: LocalFeatures | None


_ABSENT: Any = None
"""In place of tensors that no loss reads."""


def kept(features: PairFeatures) -> PairFeatures:
    """Leaves out what no loss reads: above all the maps of the pyramid, and the weights of the routing."""
    image, text, local = features
    if local is not None:
        stats = None if local.stats is None else RouterStats(*local.stats)
        local = local._replace(routing=_decisions(local.routing), stats=stats, scale_weights=None)
    return PairFeatures(image._replace(maps=(), pooled=_ABSENT), text._replace(pooled=_ABSENT), local)


def joined(features: Sequence[PairFeatures], batches: Sequence[Batch]) -> tuple[Batch, PairFeatures]:
    """Concatenates micro-batches.

    Args:
        features: Of :func:`kept`, one of each micro-batch.
        batches: The micro-batches. Their images are left out.
    """
    images, texts = [each.image for each in features], [each.text for each in features]
    image = images[0]._replace(
        embedding=torch.cat([each.embedding for each in images]), visible=_cat([each.visible for each in images])
    )
    longest = max(text.mask.shape[1] for text in texts)
    words = torch.cat([F.pad(text.words, (0, 0, 0, longest - text.words.shape[1])) for text in texts])
    mask = torch.cat([F.pad(text.mask, (0, longest - text.mask.shape[1])) for text in texts])
    text = texts[0]._replace(words=words, mask=mask, embedding=torch.cat([each.embedding for each in texts]))
    local = _joined_local([each.local for each in features if each.local is not None])
    return _joined_batch(batches, mask.device), PairFeatures(image, text, local)


def _decisions(routing: Routing | None) -> Routing | None:
    """Returns the logits and the chosen experts of a routing."""
    if routing is None:
        return None
    return routing._replace(gates=_ABSENT, probs=None, load_probs=None, kept=None, sums=None)


def _joined_local(parts: Sequence[LocalFeatures]) -> LocalFeatures | None:
    if not parts:
        return None
    routings = [part.routing for part in parts if part.routing is not None]
    routing = None
    if routings:
        routing = routings[0]._replace(
            expert_ids=torch.cat([each.expert_ids for each in routings]),
            logits=_cat([each.logits for each in routings]),
            valid=torch.cat([each.valid for each in routings]),
        )
    stats = [part.stats for part in parts if part.stats is not None]
    return parts[0]._replace(
        regions=torch.cat([part.regions for part in parts]),
        routing=routing,
        stats=sum(stats[1:], stats[0]) if stats else None,
        visible=_cat([part.visible for part in parts]),
    )


def _joined_batch(batches: Sequence[Batch], device: torch.device) -> Batch:
    def moved(field: Tensor) -> Tensor:
        return field.to(device, non_blocking=True)

    tokens = [batch.tokens for batch in batches]
    longest = max(each.input_ids.shape[1] for each in tokens)

    def stacked(name: str, padding: int | bool) -> Tensor:
        each = (moved(getattr(one, name)) for one in tokens)
        return torch.cat([F.pad(field, (0, longest - field.shape[1]), value=padding) for field in each])

    return Batch(
        images=_ABSENT,
        tokens=Tokens(
            stacked("input_ids", 0),
            stacked("attention_mask", False),
            stacked("word_ids", NO_WORD),
            max(each.num_words for each in tokens),
        ),
        labels=torch.cat([moved(batch.labels) for batch in batches]),
        text_ids=torch.cat([moved(batch.text_ids) for batch in batches]),
        index=torch.cat([moved(batch.index) for batch in batches]),
        skipped=torch.stack([moved(batch.skipped) for batch in batches]).sum(),
    )


def _cat(tensors: Sequence[Tensor | None]) -> Tensor | None:
    present = [tensor for tensor in tensors if tensor is not None]
    return torch.cat(present) if present else None
