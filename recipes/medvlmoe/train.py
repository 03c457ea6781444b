"""Stage 1: training. Read ``main``, then ``train_one``, from top to bottom."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from lightning.fabric import Fabric
from torch import Tensor, nn

from moekit import SparseMoE, TopKRouter, all_reduce_stats, router_entropy
from recipes.data.decoded_cache import DecodedImages, fill_cache
from recipes.data.studies import StudySource, StudySplit
from recipes.data.verify import verify_images
from recipes.medvlmoe.balance import BalanceLosses
from recipes.medvlmoe.build import load_model, new_model, save_architecture
from recipes.medvlmoe.config import Config, TrainConfig
from recipes.medvlmoe.data import Batch, StudyDataset, build_source, make_loader, texts_of
from recipes.medvlmoe.inference import Predictions, predict_batches
from recipes.medvlmoe.modalities import ModalityDropout, check_rates, check_something_is_read
from recipes.medvlmoe.model import MedVLMoE, reads_text
from recipes.shared.checkpoints import checkpoint_to_resume
from recipes.shared.class_weights import balanced_class_weights
from recipes.shared.data_summary import study_summary
from recipes.shared.fingerprint import check_unchanged, write_fingerprint
from recipes.shared.limits import check_limits
from recipes.shared.loggers import check_loggers
from recipes.shared.outputs import check_folder
from recipes.shared.runs import write_json
from recipes.shared.scores.metrics import evaluate_predictions
from recipes.shared.training import (
    begin_epoch,
    check_on_first_rank,
    one_run_per_seed,
    optimiser_steps,
    run_epochs,
    set_learning_rates,
    starting_state,
    sum_over_ranks,
    take_step,
)
from recipes.shared.weight_decay import parameter_groups

MAY_CHANGE = (
    "epochs",
    "patience",
    "accelerator",
    "workers",
    "cache_images",
    "cache_folder",
    "cache_gigabytes",
    "download",
    "verify_images",
    "loggers",
)
"""Settings that a resumed run may change: how long it trains, and where."""


def main(config: Config) -> list[Path]:
    """Trains one run per seed.

    Returns:
        The folders of the runs: ``config.out``, or ``config.out/seed-N`` where there are several seeds.

    Raises:
        ValueError: If the settings contradict each other, or ``config.out`` holds a run already and
            ``resume`` is off.
    """
    check_limits(config)
    check_loggers(config.train.loggers)
    check_folder(config.out, "--out")
    return one_run_per_seed(config, train_one)


def train_one(config: Config) -> None:
    """Trains one run, from its beginning or from its last checkpoint."""
    started = time.monotonic()
    settings, seed, out = config.train, config.seeds[0], config.out
    checkpoint = checkpoint_to_resume(config, may_change=MAY_CHANGE)
    fabric = Fabric(
        accelerator=settings.accelerator,
        devices=settings.devices,
        num_nodes=settings.nodes,
        precision=settings.precision,
    )
    fabric.launch()
    torch.manual_seed(seed)

    source = build_source(config.data, config.model.image_size)
    fabric.print(_summary(config, source))
    if checkpoint is not None:
        check_unchanged(out, source.splits(), data=config.data.data)
    if config.data.verify_images:
        check_on_first_rank(fabric, lambda: verify_images(source.splits(), config.data.data))
    if checkpoint is None:
        train_texts = texts_of(source.train, config.data)
        model = new_model(config, [text for text in train_texts if text], source.classes, source.task)
    else:
        model = load_model(out, "last")[0]  # from the run's folder: no hub is asked again
    reads = model.text_encoder is not None
    check_rates(settings.drop_image, settings.drop_text, reads_text=reads)
    texts = {name: texts_of(split, config.data) for name, split in source.splits()}
    check_something_is_read(source, texts, reads_text=reads)
    train_loader, val_loader = _loaders(config, source, model, fabric)
    optimizer = torch.optim.AdamW(_parameter_groups(model, settings))
    state = starting_state(checkpoint, model, optimizer, fabric)
    if fabric.is_global_zero:
        save_architecture(model, source.classes, source.task, out)
        write_json(out / "config.json", config.to_json())
        write_fingerprint(out, source.splits())
    wrapped, optimizer = fabric.setup(model, optimizer)
    class_weights = None
    if settings.class_weights == "balanced":
        class_weights = balanced_class_weights(source.train.labels, source.task).to(fabric.device)

    run_epochs(
        fabric,
        model,
        optimizer,
        state,
        settings,
        out=out,
        started=started,
        train_epoch=lambda epoch: _train_epoch(
            fabric, wrapped, model, optimizer, train_loader, settings, seed, epoch, class_weights
        ),
        validate=lambda: _validate(fabric, model, val_loader, source),
        score=_score,
        line=_line,
        remedy="lower --lr-encoder or --lr-head, or use another --precision",
    )


def _summary(config: Config, source: StudySource) -> str:
    """Returns what the data hold, with the texts that the model reads."""
    texts = {name: texts_of(split, config.data) for name, split in source.splits()}
    unread = "" if reads_text(config.model) else f"\n  note: --variant {config.model.variant} reads no text"
    return study_summary(source, {name: [] for name in texts} if unread else texts) + unread


def _loaders(config: Config, source: StudySource, model: MedVLMoE, fabric: Fabric) -> tuple[Any, Any]:
    settings, seed = config.train, config.seeds[0]
    tokenizer = None if model.text_encoder is None else model.text_encoder.tokenizer
    common: dict[str, Any] = {"text_tokens": config.model.text_tokens, "cache": settings.cache_images}
    spec = model.image_encoder.spec
    place = {"rank": fabric.global_rank, "world_size": fabric.world_size}
    train = StudyDataset(
        source.train,
        texts_of(source.train, config.data),
        tokenizer,
        spec,
        augment_seed=seed if settings.augment else None,
        stored=_decoded(source.train, "train", spec.size, settings, fabric),
        dropout=ModalityDropout(settings.drop_image, settings.drop_text, seed),
        **common,
    )
    stored = _decoded(source.val, "val", spec.size, settings, fabric)
    val = StudyDataset(source.val, texts_of(source.val, config.data), tokenizer, spec, stored=stored, **common)
    return make_loader(train, settings, seed=seed, **place), make_loader(val, settings, seed=None, **place)


def _decoded(split: StudySplit, name: str, size: int, settings: TrainConfig, fabric: Fabric) -> DecodedImages | None:
    """Fills the cache of decoded images with a split; ``None`` without a folder for it."""
    if settings.cache_folder is None:
        return None
    return fill_cache(
        split,
        settings.cache_folder,
        size,
        limit_bytes=settings.cache_gigabytes * 1e9,
        workers=settings.workers,
        title=f"decode {name}" if fabric.is_global_zero else None,
    )


def _parameter_groups(model: MedVLMoE, settings: TrainConfig) -> list[dict[str, Any]]:
    """Groups encoders and the rest with their own learning rates; weight decay on matrices only."""
    return parameter_groups(
        model,
        weight_decay=settings.weight_decay,
        rates={"encoder": settings.lr_encoder, "head": settings.lr_head},
        part_of=lambda name: "encoder" if name.startswith(("image_encoder.", "text_encoder.")) else "head",
    )


def _train_epoch(
    fabric: Fabric,
    wrapped: nn.Module,
    model: MedVLMoE,
    optimizer: torch.optim.Optimizer,
    loader: Any,
    settings: TrainConfig,
    seed: int,
    epoch: int,
    class_weights: Tensor | None,
) -> dict[str, Any]:
    """Trains on the whole training split once."""
    started = time.monotonic()
    loader.batch_sampler.epoch = epoch
    begin_epoch(fabric, wrapped, seed, epoch)
    balance = BalanceLosses(settings)
    sums = torch.zeros(6, dtype=torch.float64)

    def loss_of(batch: Batch, shares: Tensor) -> Tensor:
        batch = batch.to(fabric.device)
        output = wrapped(*batch.inputs())
        task = model.head.loss(output.logits, batch.labels, class_weights)
        loss = shares[0] * task
        parts = torch.zeros(3)
        if output.stats is not None:
            stats = all_reduce_stats(output.stats)
            balance_value, z_value = balance(stats)
            loss = loss + shares[1] * balance.weighted(balance_value, z_value)
            parts = torch.stack([balance_value, z_value, router_entropy(stats)]).detach()
        known, studies = _counts(model, batch)
        sums.add_(
            torch.tensor([float(task.detach()) * known, *(part * studies for part in parts.tolist()), known, studies])
        )
        return loss

    for factor, micro_batches in optimiser_steps(fabric, loader, len(loader), settings, epoch):
        set_learning_rates(optimizer, factor)
        take_step(
            fabric,
            wrapped,
            optimizer,
            micro_batches,
            counts_of=lambda batch: _counts(model, batch),
            loss_of=loss_of,
            clip_norm=settings.clip_norm,
        )
        _update_bias(model, balance.step_done(), settings)
    task, *parts, known, studies = sum_over_ranks(fabric, sums)
    means = [task / max(1.0, known), *(part / max(1.0, studies) for part in parts)]
    return _record(epoch, means, balance, model, optimizer, time.monotonic() - started)


def _counts(model: MedVLMoE, batch: Batch) -> tuple[int, int]:
    """Counts known labels, over which the task's loss is a mean, and studies, over which the router's losses are."""
    return int(model.head.known_labels(batch.labels).sum()), len(batch.labels)


def _record(
    epoch: int,
    means: list[float],
    balance: BalanceLosses,
    model: MedVLMoE,
    optimizer: torch.optim.Optimizer,
    seconds: float,
) -> dict[str, Any]:
    task, balance_value, z_value, entropy = means
    rates = {group["part"]: float(group["lr"]) for group in optimizer.param_groups}
    sparse = isinstance(getattr(model, "experts", None), SparseMoE)
    return {
        "epoch": epoch,
        "train_loss": task + balance.weighted(balance_value, z_value),
        "task_loss": task,
        "balance_loss": balance_value if sparse else None,
        "z_loss": z_value if sparse else None,
        "router_entropy": entropy if sparse else None,
        "lr_encoder": rates.get("encoder"),
        "lr_head": rates.get("head"),
        "seconds": seconds,
    }


def _update_bias(model: MedVLMoE, counts: Tensor | None, settings: TrainConfig) -> None:
    if settings.balance != "bias" or counts is None:
        return
    assert isinstance(model.experts, SparseMoE)
    assert isinstance(model.experts.router, TopKRouter)
    model.experts.router.update_bias_(counts, settings.balance_weight)


def _validate(fabric: Fabric, model: MedVLMoE, loader: Any, source: StudySource) -> dict[str, Any]:
    """Computes loss and macro AUROC on the validation split, gathered from all ranks; one may have no study of it."""
    predictions: Predictions | None = None
    if len(loader):
        with fabric.autocast():
            predictions = predict_batches(model, loader, device=fabric.device)
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
    return {"val_loss": loss, "val_macro_auroc": scores["macro_auroc"]}


def _score(record: dict[str, Any]) -> float:
    """Returns what epochs are compared by: macro AUROC, or the negated loss where it is undefined."""
    auroc = record["val_macro_auroc"]
    return -record["val_loss"] if auroc is None else auroc


def _line(record: dict[str, Any]) -> str:
    auroc = record["val_macro_auroc"]
    return (
        f"loss {record['train_loss']:.4f}  val loss {record['val_loss']:.4f}  "
        f"val AUROC {'undefined' if auroc is None else f'{auroc:.4f}'}"
    )
