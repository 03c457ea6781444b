"""Stage 1: pretraining. Read ``main``, then ``pretrain_one``, from top to bottom."""

import math
import time
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from lightning.fabric.strategies import DDPStrategy
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from recipes.data.pairs import PairSource
from recipes.medmoe.build import load_model, new_model, save_architecture
from recipes.medmoe.config import Config, TrainConfig
from recipes.medmoe.data.batches import (
    UNKNOWN,
    Batch,
    PairDataset,
    PairReader,
    make_loader,
    set_epoch,
    train_loader,
)
from recipes.medmoe.data.sources import build_source, train_texts
from recipes.medmoe.model import MedMoE
from recipes.medmoe.pretrain.objective import pair_losses, stats_of
from recipes.shared.runs import peak_memory_bytes, read_json, write_json
from recipes.shared.training import (
    check_same_settings,
    last_checkpoint,
    lr_factor,
    one_run_per_seed,
    restore_checkpoint,
    save_checkpoints,
)

MAY_CHANGE = ("epochs", "patience", "accelerator", "workers", "cache_images")
"""Settings that a resumed run may change: how long it trains, and where."""

MEANS = ("loss", "global_loss", "local_loss", "router_loss", "balance_loss")
SUMS = ("entropy", "routed", "right", "known", "skipped", "pairs")


def main(config: Config) -> list[Path]:
    """Pretrains one run per seed.

    Returns:
        The folders of the runs: ``config.out``, or ``config.out/seed-N`` where there are several seeds.

    Raises:
        ValueError: If the settings contradict each other, or ``config.out`` holds a run already and
            ``resume`` is off.
    """
    return one_run_per_seed(config, pretrain_one)


def pretrain_one(config: Config) -> None:
    """Pretrains one run, from its beginning or from its last checkpoint."""
    started = time.monotonic()
    settings, seed, out = config.train, config.seeds[0], config.out
    last = last_checkpoint(out, resume=config.resume)
    resuming = last.exists()
    if resuming:
        old = Config.from_json(read_json(out / "config.json"))
        check_same_settings(old, config, may_change=MAY_CHANGE)
    fabric = _fabric(settings)
    torch.manual_seed(seed)

    source = build_source(config)
    model = load_model(out, "last")[0] if resuming else new_model(config, train_texts(source))
    if fabric.is_global_zero:
        save_architecture(model, out)
        write_json(out / "config.json", config.to_json())
    reader = reader_of(model)
    rank, world_size = fabric.global_rank, fabric.world_size
    loader, batches = train_loader(config, source, reader, rank=rank, world_size=world_size)
    val_loader = make_loader(PairDataset(source.val, reader, cache=settings.cache_images), settings, seed=None)
    optimizer = _optimizer(model, settings)
    state: dict[str, Any] = {"epoch": 0, "best": math.inf, "best_epoch": 0, "seconds": 0.0, "history": []}
    if resuming:
        state |= restore_checkpoint(last, model, optimizer, fabric)
    wrapped, optimizer = fabric.setup(model, optimizer)

    for epoch in range(state["epoch"], settings.epochs):
        if epoch - state["best_epoch"] > settings.patience:
            break
        set_epoch(loader, epoch)
        record = _train_epoch(fabric, wrapped, model, optimizer, loader, batches, config, epoch)
        if not math.isfinite(record["train_loss"]):
            raise RuntimeError(
                f"the training loss of epoch {epoch + 1} is {record['train_loss']}: lower --lr, or use another "
                "--precision. The last checkpoint is that of the epoch before."
            )
        record |= _validate(fabric, model, val_loader, config)
        better = record["val_loss"] < state["best"]
        if better:
            state |= {"best": record["val_loss"], "best_epoch": epoch}
        state["history"].append(record)
        state |= {"epoch": epoch + 1, "seconds": state["seconds"] + time.monotonic() - started}
        started = time.monotonic()
        if fabric.is_global_zero:
            save_checkpoints(out, model, optimizer, fabric, state, better=better)
        fabric.barrier()
        _say(fabric, record, settings.epochs, better)
    if fabric.is_global_zero:
        _write_training(out, state, source)
    fabric.barrier()


def reader_of(model: MedMoE) -> PairReader:
    """What turns studies into the inputs of a model."""
    return PairReader(
        model.modalities, model.text_encoder.tokenizer, model.image_encoder.spec, model.config.text_tokens
    )


def _fabric(settings: TrainConfig) -> Fabric:
    """Several devices train by DDP; a batch may leave experts without samples, so it looks for unused weights."""
    strategy: Any = DDPStrategy(find_unused_parameters=True) if settings.devices > 1 else "auto"
    fabric = Fabric(
        accelerator=settings.accelerator, devices=settings.devices, precision=settings.precision, strategy=strategy
    )
    fabric.launch()
    return fabric


def _optimizer(model: MedMoE, settings: TrainConfig) -> torch.optim.Optimizer:
    """Weight decay on matrices and convolutions only; what is frozen is left out."""
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for parameter in model.parameters():
        if parameter.requires_grad:
            groups[parameter.ndim >= 2].append(parameter)
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[settings.optimizer]
    return kind(
        [
            {"params": groups[True], "weight_decay": settings.weight_decay},
            {"params": groups[False], "weight_decay": 0.0},
        ],
        lr=settings.lr,
    )


def _train_epoch(
    fabric: Fabric,
    wrapped: nn.Module,
    model: MedMoE,
    optimizer: torch.optim.Optimizer,
    loader: DataLoader[Any],
    batches: int,
    config: Config,
    epoch: int,
) -> dict[str, Any]:
    """One pass over the training pairs. Chance depends on ``(seed, epoch, rank)`` only, never on what came before."""
    started = time.monotonic()
    settings, seed = config.train, config.seeds[0]
    torch.manual_seed((seed * 1_000_003 + epoch) * 4099 + fabric.global_rank)
    wrapped.train()
    steps_per_epoch = -(-batches // settings.accumulate)
    tally = Tally()
    bar = tqdm(
        islice(loader, batches),
        total=batches,
        desc=f"epoch {epoch + 1}/{settings.epochs}",
        leave=False,
        disable=not fabric.is_global_zero,
    )
    for number, batch in enumerate(bar):
        step = epoch * steps_per_epoch + number // settings.accumulate
        window = number // settings.accumulate * settings.accumulate
        micro_batches = min(settings.accumulate, batches - window)
        closes = number + 1 == window + micro_batches
        factor = lr_factor(step, steps_per_epoch, epochs=settings.epochs, warmup_epochs=settings.warmup_epochs)
        for group in optimizer.param_groups:
            group["lr"] = settings.lr * factor
        with fabric.no_backward_sync(wrapped, enabled=not closes):
            loss = _step(fabric, wrapped, batch.to(fabric.device), config, tally, gather=settings.gather)
            fabric.backward(loss / micro_batches)
        if closes:
            if settings.clip_norm:
                fabric.clip_gradients(wrapped, optimizer, max_norm=settings.clip_norm, error_if_nonfinite=False)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        bar.set_postfix(loss=f"{float(loss.detach()):.3f}")
    means = tally.means(fabric)
    return {
        "epoch": epoch,
        **{f"train_{name}" if name == "loss" else name: means[name] for name in MEANS},
        "router_entropy": means["entropy"],
        "routing_accuracy": means["accuracy"],
        "skipped": means["skipped"],
        "lr": float(optimizer.param_groups[0]["lr"]),
        "seconds": time.monotonic() - started,
    }


def _step(fabric: Fabric, forward: nn.Module, batch: Batch, config: Config, tally: "Tally", *, gather: bool) -> Tensor:
    """Forward and losses of one batch."""
    image, text, local = forward(batch.images, batch.tokens, batch.labels)
    gathered = gather and fabric.world_size > 1
    losses = pair_losses(batch, image, text, local, config.model, config.train, gather=gathered)
    stats = stats_of(local, config.model.num_experts).detach()
    known = batch.labels != UNKNOWN
    right = (local.routing.expert_ids[:, 0] == batch.labels) & known
    tally.add(
        [float(value.detach()) for value in losses],
        [
            float(stats.entropy_sum),
            float(stats.num_tokens),
            float(right.sum()),
            float(known.sum()),
            float(batch.skipped),
            float(len(batch.labels)),
        ],
    )
    return losses.total


class Tally:
    """Sums over the batches of an epoch: losses weighted by pairs, and counts."""

    def __init__(self) -> None:
        self.losses = torch.zeros(len(MEANS), dtype=torch.float64)
        self.sums = torch.zeros(len(SUMS), dtype=torch.float64)

    def add(self, losses: list[float], sums: list[float]) -> None:
        """Adds one batch: its mean losses and its counts."""
        self.losses += torch.tensor(losses, dtype=torch.float64) * sums[-1]
        self.sums += torch.tensor(sums, dtype=torch.float64)

    def means(self, fabric: Fabric) -> dict[str, Any]:
        """Means over the pairs of all ranks; the accuracy is ``None`` where no modality is known."""
        total = torch.cat([self.losses, self.sums])
        if fabric.world_size > 1:
            total = fabric.all_reduce(total.to(fabric.device), reduce_op="sum").cpu()
        values = dict(zip((*MEANS, *SUMS), total.tolist(), strict=True))
        pairs = max(1.0, values["pairs"])
        return {
            **{name: values[name] / pairs for name in MEANS},
            "entropy": values["entropy"] / max(1.0, values["routed"]),
            "accuracy": values["right"] / values["known"] if values["known"] else None,
            "skipped": int(values["skipped"]),
        }


@torch.no_grad()
def _validate(fabric: Fabric, model: MedMoE, loader: DataLoader[Any], config: Config) -> dict[str, Any]:
    """Losses and routing on the whole validation split; every rank computes all of it, so batches do not change."""
    model.eval()
    tally = Tally()
    with fabric.autocast():
        for batch in loader:
            _step(fabric, model, batch.to(fabric.device), config, tally, gather=False)
    model.train()
    means = tally.means(fabric)
    losses = {f"val_{name}": means[name] for name in ("loss", "global_loss", "local_loss", "router_loss")}
    return losses | {"val_routing_accuracy": means["accuracy"]}


def _write_training(out: Path, state: dict[str, Any], source: PairSource) -> None:
    write_json(
        out / "training.json",
        {
            "epochs": state["epoch"],
            "best_epoch": state["best_epoch"],
            "seconds": state["seconds"],
            "peak_memory_bytes": peak_memory_bytes(),
            "skipped": sum(epoch["skipped"] for epoch in state["history"]),
            "notes": list(source.notes),
        },
    )


def _say(fabric: Fabric, record: dict[str, Any], epochs: int, better: bool) -> None:
    accuracy = record["val_routing_accuracy"]
    fabric.print(
        f"epoch {record['epoch'] + 1:3d}/{epochs}  loss {record['train_loss']:.4f}  val loss {record['val_loss']:.4f}  "
        f"(global {record['val_global_loss']:.3f}, local {record['val_local_loss']:.3f})  "
        f"val routing {'unknown' if accuracy is None else f'{accuracy:.3f}'}{'  best' if better else ''}"
    )
