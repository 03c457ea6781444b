"""Running a trained model over studies."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from moekit.routing import entropy
from recipes.data.decoded_cache import existing_cache
from recipes.data.studies import StudySplit
from recipes.medvlmoe.config import Config
from recipes.medvlmoe.data import Batch, StudyDataset
from recipes.medvlmoe.modalities import ModalityDropout
from recipes.medvlmoe.model import Diagnosis, MedVLMoE, takes_text
from recipes.medvlmoe.sources import texts_of


class Predictions(NamedTuple):
    """What the model computes for ``N`` studies, in the order of ``index``.

    Attributes:
        index: ``(N,)``, place in the split.
        logits: ``(N, C)``, of an ordinal task the ``(N, C - 1)`` of "above grade k".
        probs: ``(N, C)``.
        labels: ``(N, C)``, NaN where unknown.
        loss: ``(N,)``, the task's loss of the study, a sum over its known labels.
        known: ``(N,)``, over how many.
        usage: ``(N, E)``, share of the study's routed slots at each expert; ``None`` without experts.
        gates: ``(N, E)``, share of the study's gates at each expert.
        entropy: ``(N,)``, entropy of the router in nats, mean over the study's decisions.
        attention: ``(N, M)``, on request.
    """

    index: NDArray[np.int64]
    logits: NDArray[np.float32]
    probs: NDArray[np.float32]
    labels: NDArray[np.float32]
    loss: NDArray[np.float32]
    known: NDArray[np.int64]
    usage: NDArray[np.float32] | None
    gates: NDArray[np.float32] | None
    entropy: NDArray[np.float32] | None
    attention: NDArray[np.float32] | None

    def main_experts(self, top_k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Returns the ``top_k`` experts of each study with the largest share of its gates, and those shares."""
        assert self.gates is not None
        order = np.argsort(-self.gates, axis=1, kind="stable")[:, :top_k]
        return order, np.take_along_axis(self.gates, order, axis=1)

    def columns(self, classes: Sequence[str], top_k: int) -> dict[str, Any]:
        """Returns columns of a table of predictions: probabilities and, with experts, those chosen and their gates."""
        columns: dict[str, Any] = {f"prob:{name}": self.probs[:, k] for k, name in enumerate(classes)}
        if self.gates is not None:
            experts, gates = self.main_experts(top_k)
            columns["experts"] = [";".join(map(str, row)) for row in experts]
            columns["gates"] = [";".join(f"{value:.4f}" for value in row) for row in gates]
        return columns


def dataset_of(
    split: StudySplit,
    config: Config,
    model: MedVLMoE,
    *,
    whole_notes: bool = False,
    dropout: ModalityDropout | None = None,
) -> StudyDataset:
    """Returns a split as the model reads it, without augmentation; images come from the run's cache where it has them.

    Args:
        split: The studies.
        config: Settings of the run.
        model: Its model.
        whole_notes: As in `texts_of`.
        dropout: What is left out of studies that have an image and a text; nothing by default.
    """
    tokenizer = model.text_encoder.tokenizer if takes_text(model) else None
    texts = texts_of(split, config.data, whole_notes=whole_notes)
    spec, text_tokens = model.image_encoder.spec, config.model.text_tokens
    stored = existing_cache(split, config.train.cache_folder, spec.size)
    return StudyDataset(
        split,
        texts,
        tokenizer,
        spec,
        text_tokens=text_tokens,
        dropout=dropout,
        stored=stored,
        slices=config.model.slices,
    )


@torch.no_grad()
def predict_batches(
    model: MedVLMoE,
    batches: Any,
    *,
    device: torch.device,
    need_attention: bool = False,
    title: str | None = None,
) -> Predictions:
    """Runs the model over batches; leaves it in the mode that it was in.

    Args:
        model: The model.
        batches: Of :class:`~recipes.medvlmoe.data.Batch`.
        device: Where to compute.
        need_attention: Whether to return attention maps.
        title: Of a progress bar; none by default.

    Raises:
        ValueError: If there is no batch.
    """
    training = model.training
    model.eval()
    rows: list[dict[str, Tensor]] = []
    for batch in tqdm(batches, desc=title, disable=title is None, leave=False):
        rows.append(_run_batch(model, batch.to(device), need_attention))
    model.train(training)
    if not rows:
        raise ValueError("batches must hold at least one study, got none.")
    joined = {key: torch.cat([row[key] for row in rows]).cpu().numpy() for key in rows[0]}
    return Predictions(**{name: joined.get(name) for name in Predictions._fields})


def _run_batch(model: MedVLMoE, batch: Batch, need_attention: bool) -> dict[str, Tensor]:
    output: Diagnosis = model(*batch.inputs(), need_attention=need_attention)
    columns = {
        "index": batch.index,
        "logits": output.logits.float(),
        "probs": model.head.probs(output.logits),
        "labels": batch.labels,
        "loss": model.head.losses(output.logits, batch.labels),
        "known": model.head.known_labels(batch.labels),
    }
    if output.routing is not None:
        columns |= _usage(output, len(batch.index))
    if output.attention is not None:
        columns["attention"] = output.attention.float()
    return columns


def _usage(output: Diagnosis, studies: int) -> dict[str, Tensor]:
    """Adds up the decisions of each study: one, or one per real token."""
    routing = output.routing
    assert routing is not None
    real = torch.ones(studies, 1, device=routing.probs.device) if output.routed is None else output.routed.float()
    used = torch.ones_like(routing.gates) if routing.kept is None else routing.kept.to(routing.gates.dtype)
    chosen = torch.zeros_like(routing.probs).scatter_(1, routing.expert_ids, used)
    gates = torch.zeros_like(routing.probs).scatter_(1, routing.expert_ids, routing.gates)
    weight = real.reshape(-1, 1)

    def per_study(values: Tensor) -> Tensor:
        return (values * weight).view(studies, -1, values.shape[-1]).sum(1)

    usage, gate_sum = per_study(chosen), per_study(gates.nan_to_num())
    decided = real.sum(1).clamp(min=1)
    return {
        "usage": usage / usage.sum(-1, keepdim=True).clamp(min=1e-9),
        "gates": gate_sum / gate_sum.sum(-1, keepdim=True).clamp(min=1e-9),
        "entropy": per_study(entropy(routing.probs).unsqueeze(-1)).squeeze(-1) / decided,
    }
