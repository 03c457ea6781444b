"""Stage 1: pretraining. Read ``main``, then ``pretrain_one``, from top to bottom."""

import time
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from lightning.fabric.strategies import DDPStrategy
from torch import Tensor, nn
from torch.utils.data import DataLoader

from moekit import all_reduce_stats
from recipes.data.verify import verify_images
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
from recipes.medmoe.pretrain.objective import pair_losses, step_loss
from recipes.medmoe.pretrain.tally import Tally
from recipes.shared.checkpoints import checkpoint_to_resume
from recipes.shared.data_summary import pair_summary
from recipes.shared.fingerprint import check_unchanged, write_fingerprint
from recipes.shared.limits import check_limits
from recipes.shared.loggers import check_loggers
from recipes.shared.outputs import check_folder
from recipes.shared.runs import write_json
from recipes.shared.training import (
    begin_epoch,
    check_on_first_rank,
    one_run_per_seed,
    optimiser_steps,
    run_epochs,
    set_learning_rates,
    starting_state,
    take_step,
)
from recipes.shared.weight_decay import parameter_groups

MAY_CHANGE = ("epochs", "patience", "accelerator", "workers", "cache_images", "verify_images", "loggers")
"""Settings that a resumed run may change: how long it trains, and where."""


def main(config: Config) -> list[Path]:
    """Pretrains one run per seed.

    Returns:
        The folders of the runs: ``config.out``, or ``config.out/seed-N`` where there are several seeds.

    Raises:
        ValueError: If the settings contradict each other, or ``config.out`` holds a run already and
            ``resume`` is off.
    """
    check_limits(config)
    check_loggers(config.train.loggers)
    check_folder(config.out, "--out")
    return one_run_per_seed(config, pretrain_one)


def pretrain_one(config: Config) -> None:
    """Pretrains one run, from its beginning or from its last checkpoint."""
    started = time.monotonic()
    settings, seed, out = config.train, config.seeds[0], config.out
    checkpoint = checkpoint_to_resume(config, may_change=MAY_CHANGE)
    fabric = _fabric(settings)
    torch.manual_seed(seed)

    source = build_source(config)
    fabric.print(pair_summary(source))
    if checkpoint is not None:
        check_unchanged(out, source.splits(), data=config.data.data)
    if config.data.verify_images:
        check_on_first_rank(fabric, lambda: verify_images(source.splits(), config.data.data))
    # A run that goes on is built from its folder: no hub is asked again.
    model = new_model(config, train_texts(source)) if checkpoint is None else load_model(out, "last")[0]
    reader = reader_of(model)
    rank, world_size = fabric.global_rank, fabric.world_size
    loader, batches = train_loader(config, source, reader, rank=rank, world_size=world_size)
    val_loader = make_loader(PairDataset(source.val, reader, cache=settings.cache_images), settings, seed=None)
    optimizer = _optimizer(model, settings)
    state = starting_state(checkpoint, model, optimizer, fabric)
    if fabric.is_global_zero:
        save_architecture(model, out)
        write_json(out / "config.json", config.to_json())
        write_fingerprint(out, source.splits())
    wrapped, optimizer = fabric.setup(model, optimizer)

    run_epochs(
        fabric,
        model,
        optimizer,
        state,
        settings,
        out=out,
        started=started,
        train_epoch=lambda epoch: _train_epoch(fabric, wrapped, optimizer, loader, batches, config, epoch),
        validate=lambda: _validate(fabric, model, val_loader, config),
        score=lambda record: -record["val_loss"],
        line=_line,
        remedy="lower --lr, or use another --precision",
        facts=lambda state: {
            "skipped": sum(record["skipped"] for record in state["history"]),
            "notes": list(source.notes),
        },
    )


def reader_of(model: MedMoE) -> PairReader:
    """Makes the reader that turns studies into the inputs of a model."""
    return PairReader(
        model.modalities, model.text_encoder.tokenizer, model.image_encoder.spec, model.config.text_tokens
    )


def _fabric(settings: TrainConfig) -> Fabric:
    """Sets up DDP for several devices; a batch may leave experts without samples, so it looks for unused weights."""
    strategy: Any = DDPStrategy(find_unused_parameters=True) if settings.devices * settings.nodes > 1 else "auto"
    fabric = Fabric(
        accelerator=settings.accelerator,
        devices=settings.devices,
        num_nodes=settings.nodes,
        precision=settings.precision,
        strategy=strategy,
    )
    fabric.launch()
    return fabric


def _optimizer(model: MedMoE, settings: TrainConfig) -> torch.optim.Optimizer:
    """Makes the optimiser: one learning rate, weight decay on matrices only, frozen parameters left out."""
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[settings.optimizer]
    return kind(
        parameter_groups(
            model, weight_decay=settings.weight_decay, rates={"model": settings.lr}, part_of=lambda name: "model"
        )
    )


def _train_epoch(
    fabric: Fabric,
    wrapped: nn.Module,
    optimizer: torch.optim.Optimizer,
    loader: DataLoader[Any],
    batches: int,
    config: Config,
    epoch: int,
) -> dict[str, Any]:
    """Trains on all training pairs once."""
    started = time.monotonic()
    settings = config.train
    set_epoch(loader, epoch)
    begin_epoch(fabric, wrapped, config.seeds[0], epoch)
    tally = Tally()

    def loss_of(batch: Batch, shares: Tensor) -> Tensor:
        return _loss(fabric, wrapped, batch.to(fabric.device), config, tally, shares=shares)

    for factor, micro_batches in optimiser_steps(fabric, loader, batches, settings, epoch):
        set_learning_rates(optimizer, factor)
        take_step(
            fabric,
            wrapped,
            optimizer,
            micro_batches,
            counts_of=lambda batch: (len(batch.labels), int((batch.labels != UNKNOWN).sum())),
            loss_of=loss_of,
            clip_norm=settings.clip_norm,
        )
    means = tally.means(fabric, settings)
    return {
        "epoch": epoch,
        "train_loss": means.pop("loss"),
        **means,
        "lr": float(optimizer.param_groups[0]["lr"]),
        "seconds": time.monotonic() - started,
    }


def _loss(
    fabric: Fabric,
    forward: nn.Module,
    batch: Batch,
    config: Config,
    tally: Tally,
    *,
    shares: Tensor | None = None,
) -> Tensor:
    """Computes the loss of one batch and adds it to the tally.

    Args:
        fabric: Of the run.
        forward: The model.
        batch: The pairs.
        config: The settings.
        tally: Of the epoch.
        shares: In training, the batch's shares of the step's pairs and of its known modalities; all ranks then
            contrast and balance together. In validation every rank sees all pairs by itself.
    """
    image, text, local = forward(batch.images, batch.tokens, batch.labels)
    together = shares is not None and fabric.world_size > 1
    stats = all_reduce_stats(local.stats) if together else local.stats
    losses = pair_losses(
        batch, image, text, local, config.model, config.train, gather=together and config.train.gather, stats=stats
    )
    tally.add(losses, local, batch)
    return losses.total if shares is None else step_loss(losses, config.train, *shares)


@torch.no_grad()
def _validate(fabric: Fabric, model: MedMoE, loader: DataLoader[Any], config: Config) -> dict[str, Any]:
    """Computes losses and routing on the validation split; every rank computes all of it, in the same batches."""
    model.eval()
    tally = Tally()
    with fabric.autocast():
        for batch in loader:
            _loss(fabric, model, batch.to(fabric.device), config, tally)
    model.train()
    means = tally.means(fabric, config.train)
    return {
        f"val_{name}": means[name] for name in ("loss", "global_loss", "local_loss", "router_loss", "routing_accuracy")
    }


def _line(record: dict[str, Any]) -> str:
    accuracy = record["val_routing_accuracy"]
    return (
        f"loss {record['train_loss']:.4f}  val loss {record['val_loss']:.4f}  "
        f"(global {record['val_global_loss']:.3f}, local {record['val_local_loss']:.3f})  "
        f"val routing {'unknown' if accuracy is None else f'{accuracy:.3f}'}"
    )
