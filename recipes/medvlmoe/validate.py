"""Validation after an epoch: loss and macro AUROC over the studies of all ranks."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from lightning.fabric import Fabric
from numpy.typing import ArrayLike

from recipes.data.studies import StudySource, StudySplit
from recipes.medvlmoe.build import Model
from recipes.medvlmoe.inference import Predictions, predict_batches
from recipes.shared.scores.expert_load import load_measures, load_record
from recipes.shared.scores.metrics import evaluate_predictions
from recipes.shared.scores.paired import patients_of_rarer_outcome

FEWEST_PATIENTS = 2
"""Patients with and without a class that validation must have, for the class to choose the epoch."""


def validate(fabric: Fabric, model: Model, loader: Any, source: StudySource) -> dict[str, Any]:
    """Computes loss and macro AUROC on the validation split, gathered from all ranks; one may have no study of it."""
    predictions: Predictions | None = None
    missing = _missing_batches(fabric, len(loader))
    with fabric.autocast():
        if len(loader):
            predictions = predict_batches(model, loader, device=fabric.device)
        if missing:
            _repeat_forward(model, loader, missing, fabric.device)
    gathered: list[Predictions | None] = [predictions]
    if fabric.world_size > 1:
        gathered = [None] * fabric.world_size
        dist.all_gather_object(gathered, predictions)
    parts = [part for part in gathered if part is not None]
    probs, labels = (np.concatenate([getattr(part, name) for part in parts]) for name in ("probs", "labels"))
    groups = [source.val.groups[int(i)] for part in parts for i in part.index]
    scores = evaluate_predictions(probs, labels, groups, source.classes, task=source.task, bootstrap=0)
    known = sum(int(part.known.sum()) for part in parts)
    loss = sum(float(part.loss.sum(dtype=np.float64)) for part in parts) / max(1, known)
    usage = [part.usage for part in parts if part.usage is not None]
    load = np.concatenate(usage).mean(0).tolist() if usage else []
    measures = load_record(load, top_k=model.config.top_k, prefix="val_")
    aurocs = {name: one["auroc"] for name, one in scores["per_class"].items()}
    chosen_by = _auroc_of_choice(aurocs, classes_of_choice(labels, groups))
    return {"val_loss": loss, "val_macro_auroc": scores["macro_auroc"], **chosen_by, **measures}


def classes_of_choice(labels: ArrayLike, groups: Sequence[str]) -> list[bool]:
    """Tells of each class whether its AUROC has a say in which epoch is kept.

    The AUROC of a class that one validation patient alone has, or alone lacks, is that patient's rank: it jumps from
    epoch to epoch with no bearing on other patients.

    Args:
        labels: Shape ``(N, C)``: 1, 0 or NaN for unknown.
        groups: The patient of each study, length ``N``.
    """
    codes = np.unique(np.asarray(groups, dtype=str), return_inverse=True)[1]
    truth = np.asarray(labels, np.float64)
    return [patients_of_rarer_outcome(column, codes) >= FEWEST_PATIENTS for column in truth.T]


def choice_note(split: StudySplit, classes: Sequence[str]) -> str:
    """Names the classes that have no say in which epoch is kept, as a line of the console; empty if all have.

    Args:
        split: The validation split.
        classes: Their names.
    """
    have_say = classes_of_choice(split.labels, split.groups)
    without = [name for name, has_say in zip(classes, have_say, strict=True) if not has_say]
    if not without:
        return ""
    by = "the validation AUROC of the other classes" if any(have_say) else "the validation loss"
    return (
        f"note: fewer than {FEWEST_PATIENTS} validation patients have, or lack, {', '.join(without)}: the epoch is "
        f"chosen by {by}."
    )


def _auroc_of_choice(aurocs: dict[str, float | None], have_say: Sequence[bool]) -> dict[str, Any]:
    """Returns the mean AUROC that chooses the epoch, where it is not that of all classes that have one."""
    known = [(value, has_say) for value, has_say in zip(aurocs.values(), have_say, strict=True) if value is not None]
    if all(has_say for _, has_say in known):
        return {}
    values = [value for value, has_say in known if has_say]
    return {"val_selection_auroc": float(np.mean(values)) if values else None}


def _missing_batches(fabric: Fabric, batches: int) -> int:
    """Returns how many batches more than this rank another one has."""
    if fabric.world_size == 1:
        return 0
    most = torch.tensor(batches, device=fabric.device)
    dist.all_reduce(most, op=dist.ReduceOp.MAX)
    return int(most) - batches


@torch.no_grad()
def _repeat_forward(model: Model, loader: Any, times: int, device: torch.device) -> None:
    """Runs the model on the split's first study and drops the result: all ranks gather sharded weights at once."""
    batch = loader.collate_fn([loader.dataset[0, 0]]).to(device)
    training = model.training
    model.eval()
    for _ in range(times):
        model(*batch.inputs())
    model.train(training)


def score(record: dict[str, Any]) -> float:
    """Returns what epochs are compared by: macro AUROC, or the negated loss where it is undefined.

    Classes that a single validation patient decides have no say (:func:`classes_of_choice`). A contrast without any
    pair to validate on is compared by its training loss.
    """
    auroc, loss = record.get("val_selection_auroc", record.get("val_macro_auroc")), record["val_loss"]
    if auroc is not None:
        return auroc
    return -record["train_loss"] if loss is None else -loss


def line(record: dict[str, Any]) -> str:
    """Returns what is printed of an epoch."""
    loss = "none" if record["val_loss"] is None else f"{record['val_loss']:.4f}"
    shown = f"loss {record['train_loss']:.4f}  val loss {loss}"
    if "val_macro_auroc" not in record:
        return f"contrast  {shown}"
    auroc = record["val_macro_auroc"]
    live = f"  experts {record['val_live_experts']}/{len(record['val_load'])} live" if "val_load" in record else ""
    return f"{shown}  val AUROC {'undefined' if auroc is None else f'{auroc:.4f}'}{live}"


def dead_experts(state: dict[str, Any], studies: int, top_k: int) -> str | None:
    """Says in words which experts the kept weights leave unused on the validation split.

    Args:
        state: Progress of the run, with its ``history``.
        studies: Of the validation split.
        top_k: Experts per decision.

    Returns:
        The warning, or ``None`` where all live or there are none.
    """
    kept = [record for record in state["history"] if record["epoch"] == state["best_epoch"]]
    if not kept or "val_load" not in kept[0]:
        return None
    return load_measures(kept[0]["val_load"], top_k=top_k, decisions=studies)["warning"]
