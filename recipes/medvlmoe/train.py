"""Stage 1: training. Read ``main``, then ``train_one``, from top to bottom."""

import math
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.fabric import Fabric
from torch import Tensor, nn
from tqdm import tqdm

from moekit import SparseMoE, TopKRouter, all_reduce_stats
from recipes.data.studies import StudySource
from recipes.medvlmoe.balance import BalanceLosses
from recipes.medvlmoe.build import load_model, new_model, save_architecture
from recipes.medvlmoe.config import Config, TrainConfig
from recipes.medvlmoe.data import StudyDataset, build_source, make_loader, texts_of
from recipes.medvlmoe.inference import predict_batches
from recipes.medvlmoe.model import MedVLMoE
from recipes.shared.runs import peak_memory_bytes, read_json, write_json
from recipes.shared.scores.metrics import evaluate_predictions
from recipes.shared.training import (
    check_same_settings,
    last_checkpoint,
    lr_factor,
    one_run_per_seed,
    restore_checkpoint,
    save_checkpoints,
)

MAY_CHANGE = ("epochs", "patience", "accelerator", "workers", "cache_images", "download")
"""Settings that a resumed run may change: how long it trains, and where."""


def main(config: Config) -> list[Path]:
    """Trains one run per seed.

    Returns:
        The folders of the runs: ``config.out``, or ``config.out/seed-N`` where there are several seeds.

    Raises:
        ValueError: If the settings contradict each other, or ``config.out`` holds a run already and
            ``resume`` is off.
    """
    return one_run_per_seed(config, train_one)


def train_one(config: Config) -> None:
    """Trains one run, from its beginning or from its last checkpoint."""
    started = time.monotonic()
    settings, seed, out = config.train, config.seeds[0], config.out
    last = last_checkpoint(out, resume=config.resume)
    resuming = last.exists()
    if resuming:
        check_same_settings(Config.from_json(read_json(out / "config.json")), config, may_change=MAY_CHANGE)
    fabric = Fabric(accelerator=settings.accelerator, devices=settings.devices, precision=settings.precision)
    fabric.launch()
    torch.manual_seed(seed)

    source = build_source(config.data, config.model.image_size)
    if resuming:
        model = load_model(out, "last")[0]  # from the run's folder: no hub is asked again
    else:
        train_texts = texts_of(source.train, config.data)
        model = new_model(config, [text for text in train_texts if text], source.classes, source.task)
    if fabric.is_global_zero:
        save_architecture(model, source.classes, source.task, out)
        write_json(out / "config.json", config.to_json())
    train_loader, val_loader = _loaders(config, source, model, fabric)
    optimizer = torch.optim.AdamW(_parameter_groups(model, settings))
    state: dict[str, Any] = {"epoch": 0, "best": -math.inf, "best_epoch": 0, "seconds": 0.0, "history": []}
    if resuming:
        state |= restore_checkpoint(last, model, optimizer, fabric)
    wrapped, optimizer = fabric.setup(model, optimizer)

    for epoch in range(state["epoch"], settings.epochs):
        if epoch - state["best_epoch"] > settings.patience:
            break
        record = _train_epoch(fabric, wrapped, model, optimizer, train_loader, settings, seed, epoch)
        if not math.isfinite(record["train_loss"]):
            raise RuntimeError(
                f"the training loss of epoch {epoch + 1} is {record['train_loss']}: lower --lr-encoder or --lr-head, "
                "or use another --precision. The last checkpoint is that of the epoch before."
            )
        record |= _validate(fabric, model, val_loader, source)
        score = record["val_macro_auroc"] if record["val_macro_auroc"] is not None else -record["val_loss"]
        better = score > state["best"]
        if better:
            state |= {"best": score, "best_epoch": epoch}
        state["history"].append(record)
        state |= {"epoch": epoch + 1, "seconds": state["seconds"] + time.monotonic() - started}
        started = time.monotonic()
        if fabric.is_global_zero:
            save_checkpoints(out, model, optimizer, fabric, state, better=better)
            _write_training(out, state)
        fabric.barrier()
        _say(fabric, record, settings.epochs, better)


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
        **common,
    )
    val = StudyDataset(source.val, texts_of(source.val, config.data), tokenizer, spec, **common)
    return make_loader(train, settings, seed=seed, **place), make_loader(val, settings, seed=None, **place)


def _parameter_groups(model: MedVLMoE, settings: TrainConfig) -> list[dict[str, Any]]:
    """Encoders and the rest with their own learning rates; weight decay on matrices only."""
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        key = (name.startswith(("image_encoder.", "text_encoder.")), parameter.ndim >= 2)
        groups.setdefault(key, []).append(parameter)
    return [
        {
            "params": parameters,
            "peak_lr": settings.lr_encoder if encoder else settings.lr_head,
            "lr": 0.0,
            "weight_decay": settings.weight_decay if decays else 0.0,
            "encoder": encoder,
        }
        for (encoder, decays), parameters in sorted(groups.items())
    ]


def _train_epoch(
    fabric: Fabric,
    wrapped: nn.Module,
    model: MedVLMoE,
    optimizer: torch.optim.Optimizer,
    loader: Any,
    settings: TrainConfig,
    seed: int,
    epoch: int,
) -> dict[str, Any]:
    """One pass over the training split. Chance depends on ``(seed, epoch, rank)`` only, never on what came before."""
    started = time.monotonic()
    torch.manual_seed((seed * 1_000_003 + epoch) * 4099 + fabric.global_rank)
    loader.batch_sampler.epoch = epoch
    wrapped.train()
    balance = BalanceLosses(settings)
    steps_per_epoch = -(-len(loader) // settings.accumulate)
    totals = torch.zeros(5, dtype=torch.float64)
    bar = tqdm(loader, desc=f"epoch {epoch + 1}/{settings.epochs}", leave=False, disable=not fabric.is_global_zero)
    for number, batch in enumerate(bar):
        step = epoch * steps_per_epoch + number // settings.accumulate
        window = number // settings.accumulate * settings.accumulate
        micro_batches = min(settings.accumulate, len(loader) - window)
        closes = number + 1 == window + micro_batches
        factor = lr_factor(step, steps_per_epoch, epochs=settings.epochs, warmup_epochs=settings.warmup_epochs)
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
        with fabric.no_backward_sync(wrapped, enabled=not closes):
            batch = batch.to(fabric.device)
            said = wrapped(batch.images, batch.input_ids, batch.text_mask)
            task_loss = model.head.loss(said.logits, batch.labels)
            loss, parts = task_loss, [task_loss, torch.zeros(()), torch.zeros(()), torch.zeros(())]
            if said.stats is not None:
                stats = all_reduce_stats(said.stats)
                balance_value, z_value = balance(stats)
                loss = loss + balance.weighted(balance_value, z_value)
                entropy = (stats.entropy_sum / stats.num_tokens.clamp(min=1)).detach()
                parts = [task_loss, balance_value, z_value, entropy]
            fabric.backward(loss / micro_batches)
        totals += torch.tensor([float(loss.detach()), *(float(part.detach()) for part in parts)], dtype=torch.float64)
        if closes:
            if settings.clip_norm:
                fabric.clip_gradients(wrapped, optimizer, max_norm=settings.clip_norm, error_if_nonfinite=False)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            _update_bias(model, balance.step_done(), settings)
        bar.set_postfix(loss=f"{float(loss.detach()):.3f}")
    return _record(epoch, fabric.all_reduce(totals / len(loader)), model, optimizer, time.monotonic() - started)


def _record(
    epoch: int, means: Tensor, model: MedVLMoE, optimizer: torch.optim.Optimizer, seconds: float
) -> dict[str, Any]:
    loss, task, balance, z, entropy = means.tolist()
    rates = {bool(group["encoder"]): float(group["lr"]) for group in optimizer.param_groups}
    sparse = isinstance(getattr(model, "experts", None), SparseMoE)
    return {
        "epoch": epoch,
        "train_loss": loss,
        "task_loss": task,
        "balance_loss": balance if sparse else None,
        "z_loss": z if sparse else None,
        "router_entropy": entropy if sparse else None,
        "lr_encoder": rates.get(True),
        "lr_head": rates.get(False),
        "seconds": seconds,
    }


def _update_bias(model: MedVLMoE, counts: Tensor | None, settings: TrainConfig) -> None:
    if settings.balance != "bias" or counts is None:
        return
    assert isinstance(model.experts, SparseMoE)
    assert isinstance(model.experts.router, TopKRouter)
    model.experts.router.update_bias_(counts, settings.balance_weight)


def _validate(fabric: Fabric, model: MedVLMoE, loader: Any, source: StudySource) -> dict[str, Any]:
    """Loss and macro AUROC on the validation split, gathered from all ranks."""
    with fabric.autocast():
        found = predict_batches(model, loader, device=fabric.device)
    parts = [found]
    if fabric.world_size > 1:
        gathered: list[Any] = [None] * fabric.world_size
        dist.all_gather_object(gathered, found)
        parts = gathered
    probs, labels = (torch.cat([torch.from_numpy(getattr(p, k)) for p in parts]).numpy() for k in ("probs", "labels"))
    groups = [source.val.groups[int(i)] for p in parts for i in p.index]
    scores = evaluate_predictions(probs, labels, groups, source.classes, task=source.task, bootstrap=0)
    loss = sum(float(p.loss.sum()) for p in parts) / max(1, sum(len(p.loss) for p in parts))
    return {"val_loss": loss, "val_macro_auroc": scores["macro_auroc"]}


def _write_training(out: Path, state: dict[str, Any]) -> None:
    training = {
        "epochs": state["epoch"],
        "best_epoch": state["best_epoch"],
        "seconds": state["seconds"],
        "peak_memory_bytes": peak_memory_bytes(),
    }
    write_json(out / "training.json", training)


def _say(fabric: Fabric, record: dict[str, Any], epochs: int, better: bool) -> None:
    auroc = record["val_macro_auroc"]
    fabric.print(
        f"epoch {record['epoch'] + 1:3d}/{epochs}  loss {record['train_loss']:.4f}  val loss {record['val_loss']:.4f}  "
        f"val AUROC {'undefined' if auroc is None else f'{auroc:.4f}'}{'  best' if better else ''}"
    )
