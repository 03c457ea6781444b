"""Stage 1: pretraining. Read ``main``, then ``pretrain_one``, from top to bottom."""

import time
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import Tensor
from torch.utils.data import DataLoader

from moekit import all_reduce_stats
from recipes.data.arguments import spelled
from recipes.data.pairs import PairSource
from recipes.data.verify import verify_images
from recipes.medmoe.baselines.checks import check_read
from recipes.medmoe.baselines.report_findings import ReportFindings, findings_of
from recipes.medmoe.build import load_model, new_model, save_architecture
from recipes.medmoe.config import Config, TrainConfig
from recipes.medmoe.data.batches import UNKNOWN, Batch, PairReader
from recipes.medmoe.data.loaders import set_epoch, train_loader, val_loader
from recipes.medmoe.data.sources import SPELLING, build_source, indexed, train_texts
from recipes.medmoe.model import MedMoE
from recipes.medmoe.pretrain.joint import PairFeatures, joined, kept
from recipes.medmoe.pretrain.objective import check_settings, pair_losses, step_loss
from recipes.medmoe.pretrain.prepare import kept_in_eval, prepare_model
from recipes.medmoe.pretrain.tally import batch_sums, means_of
from recipes.shared.checkpoints import MAY_CHANGE, checkpoint_to_resume
from recipes.shared.data_summary import pair_summary
from recipes.shared.expert_parallel import check_expert_parallel, optimiser_options
from recipes.shared.fingerprint import check_unchanged, write_fingerprint
from recipes.shared.launched import with_launched_processes
from recipes.shared.limits import check_limits
from recipes.shared.loggers import check_loggers
from recipes.shared.objective import JointObjective, StepLoss, train_epoch
from recipes.shared.outputs import check_folder
from recipes.shared.runs import write_json
from recipes.shared.strategy import launch
from recipes.shared.sums import DeviceSums
from recipes.shared.training import (
    check_on_first_rank,
    one_run_per_seed,
    run_epochs,
    starting_state,
)
from recipes.shared.weight_decay import parameter_groups


def main(config: Config) -> list[Path]:
    """Pretrains one run per seed.

    Returns:
        The folders of the runs: ``config.out``, or ``config.out/seed-N`` where there are several seeds.

    Raises:
        ValueError: If the settings contradict each other, or ``config.out`` holds a run already and
            ``resume`` is off.
    """
    check_limits(config)
    check_settings(config)
    check_read(config)
    check_loggers(config.train.loggers)
    check_folder(config.out, "--out")
    config = with_launched_processes(config)
    check_expert_parallel(config.train, config.model.num_experts if config.model.local_branch == "experts" else None)
    return one_run_per_seed(config, pretrain_one)


def pretrain_one(config: Config) -> None:
    """Pretrains one run, from its beginning or from its last checkpoint."""
    started = time.monotonic()
    settings, seed, out = config.train, config.seeds[0], config.out
    checkpoint = checkpoint_to_resume(config, may_change=MAY_CHANGE)
    # A batch may leave experts without samples, so DDP looks for unused weights.
    fabric = launch(settings, find_unused=True)
    torch.manual_seed(seed)

    source = indexed(build_source(config), settings.workers, shown=fabric.is_global_zero)
    fabric.print(pair_summary(source))
    if checkpoint is not None:
        check_unchanged(out, source.splits(), data=config.data.data)
    if config.data.verify_images:
        check_on_first_rank(fabric, lambda: spelled(SPELLING)(verify_images)(source.splits(), config.data.data))
    # A run that goes on is built from its folder: no hub is asked again.
    model = new_model(config, train_texts(source)) if checkpoint is None else load_model(out, "last")[0]
    reader = reader_of(model)
    rank, world_size = fabric.global_rank, fabric.world_size
    loader, batches = train_loader(config, source, reader, rank=rank, world_size=world_size)
    val_batches = val_loader(config, source, reader, shown=fabric.is_global_zero)
    prepare_model(model, settings, fabric.device)
    wrapped = fabric.setup_module(model)
    optimizer = make_optimizer(model, settings)  # over this process's experts, where they are divided
    state = starting_state(checkpoint, model, optimizer, fabric)
    if fabric.is_global_zero:
        save_architecture(model, out)
        write_json(out / "config.json", config.to_json())
        write_fingerprint(out, source.splits())
    optimizer = fabric.setup_optimizers(optimizer)
    findings = _report_findings(fabric, config, source, model)
    objective = PairObjective(config, world_size, findings)
    in_eval = kept_in_eval(model, settings)

    def one_epoch(epoch: int) -> dict[str, Any]:
        set_epoch(loader, epoch)
        record = train_epoch(
            fabric,
            wrapped,
            optimizer,
            loader,
            batches,
            objective,
            settings,
            seed=seed,
            epoch=epoch,
            kept_in_eval=in_eval,
        )
        return record | {"lr": float(optimizer.param_groups[0]["lr"])}

    run_epochs(
        fabric,
        model,
        optimizer,
        state,
        settings,
        out=out,
        started=started,
        train_epoch=one_epoch,
        validate=lambda: _validate(fabric, model, val_batches, PairObjective(config, findings=findings)),
        score=lambda record: -record["val_loss"],
        line=_line,
        remedy="lower --lr, or use another --precision",
        facts=lambda state: {
            "skipped": sum(record["skipped"] for record in state["history"]),
            "notes": list(source.notes),
            "train_pairs": len(source.train),
        },
    )


def reader_of(model: MedMoE) -> PairReader:
    """Makes the reader that turns studies into the inputs of a model."""
    return PairReader(
        model.modalities, model.text_encoder.tokenizer, model.image_encoder.spec, model.config.text_tokens
    )


def make_optimizer(model: MedMoE, settings: TrainConfig) -> torch.optim.Optimizer:
    """Makes the optimiser: one learning rate, weight decay on matrices only, frozen parameters left out."""
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[settings.optimizer]
    return kind(
        parameter_groups(
            model, weight_decay=settings.weight_decay, rates={"model": settings.lr}, part_of=lambda name: "model"
        ),
        **optimiser_options(settings),
    )


class PairObjective(JointObjective[Batch]):
    """The losses of pairs; in training all ranks contrast and balance together.

    Args:
        config: The settings.
        world_size: Number of ranks.
        findings: Reads the findings of the reports, where images and reports are matched by them.
    """

    def __init__(self, config: Config, world_size: int = 1, findings: ReportFindings | None = None) -> None:
        self.config, self.together, self.findings = config, world_size > 1, findings
        self.joint = config.train.grad_cache

    def counts(self, batch: Batch) -> Tensor:
        """Counts pairs, and those of them whose modality is known."""
        known = (batch.labels != UNKNOWN).sum()
        return torch.stack([torch.full_like(known, len(batch.labels)), known])

    def loss(self, forward: Callable[..., Any], batch: Batch, shares: Tensor | None) -> StepLoss:
        """Computes the loss of a batch.

        Args:
            forward: The model.
            batch: The pairs.
            shares: The batch's shares of the step's pairs and of its known modalities; ``None`` for the plain mean.
        """
        return self._loss(batch, PairFeatures(*forward(batch.images, batch.tokens, batch.labels)), shares)

    def features(self, forward: Callable[..., Any], batch: Batch) -> PairFeatures:
        """Computes what the losses read of a micro-batch."""
        return kept(PairFeatures(*forward(batch.images, batch.tokens, batch.labels)))

    def joint_loss(self, features: Sequence[PairFeatures], batches: Sequence[Batch], shares: Tensor | None) -> StepLoss:
        """Computes the loss of all pairs of a step on this rank; without shares, their plain mean."""
        return self._loss(*joined(features, batches), shares)

    def _loss(self, batch: Batch, features: PairFeatures, shares: Tensor | None) -> StepLoss:
        config, local = self.config, features.local
        stats = None if local is None else local.stats
        if stats is not None and self.together:
            stats = all_reduce_stats(stats)
        losses = pair_losses(
            batch,
            *features,
            config.model,
            config.train,
            gather=self.together,
            stats=stats,
            findings=self.findings,
        )
        total = losses.total if shares is None else step_loss(losses, config.train, *shares)
        return StepLoss(total, batch_sums(losses, local, batch))

    def record(self, sums: Mapping[str, Tensor]) -> dict[str, Any]:
        """Returns the means of :func:`~recipes.medmoe.pretrain.tally.means_of`."""
        means = means_of(sums, self.config.train)
        return {"train_loss": means.pop("loss"), **means}


@torch.no_grad()
def _validate(fabric: Fabric, model: MedMoE, loader: DataLoader[Any], objective: "PairObjective") -> dict[str, Any]:
    """Computes losses and routing on the validation split; every rank computes all of it, in the same batches.

    As many pairs are contrasted as in training, so that the loss does not depend on how a step is dealt to devices.
    """
    model.eval()
    sums, settings = DeviceSums(), objective.config.train
    together = fabric.world_size if settings.gather else 1
    together *= settings.accumulate if settings.grad_cache else 1
    micro_batches = (batch.to(fabric.device) for batch in loader)
    with fabric.autocast():
        while batches := list(islice(micro_batches, together)):
            features = [objective.features(model, batch) for batch in batches]
            sums.add(objective.joint_loss(features, batches, None).sums)
    model.train()
    record = objective.record({name: value.cpu() for name, value in sums.values.items()})
    names = ("global_loss", "local_loss", "router_loss", "routing_accuracy")
    names += ("load", "load_entropy", "max_violation", "live_experts")
    return {"val_loss": record["train_loss"]} | {f"val_{name}": record[name] for name in names if name in record}


def _line(record: dict[str, Any]) -> str:
    local = record["val_local_loss"]
    parts = f"global {record['val_global_loss']:.3f}" + ("" if local is None else f", local {local:.3f}")
    line = f"loss {record['train_loss']:.4f}  val loss {record['val_loss']:.4f}  ({parts})"
    if "val_load" not in record:  # no experts
        return line
    accuracy = record["val_routing_accuracy"]
    live = f"{record['val_live_experts']}/{len(record['val_load'])} live"
    return f"{line}  val routing {'unknown' if accuracy is None else f'{accuracy:.3f}'}  experts {live}"


def _report_findings(fabric: Fabric, config: Config, source: PairSource, model: MedMoE) -> ReportFindings | None:
    """Makes what reads the findings of reports, where they are what images and reports are matched by."""
    if config.train.global_targets != "findings":
        return None
    tokenizer = model.text_encoder.tokenizer
    names = findings_of(source, config.train.findings, tokenizer)
    fabric.print(
        f"  matched by {len(names)} findings in the reports: {', '.join(names[:12])}" + ", ..." * (len(names) > 12)
    )
    return ReportFindings(names, tokenizer).to(fabric.device)
