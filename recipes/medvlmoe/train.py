"""Stage 1: training. Read ``main``, then ``train_one``, from top to bottom."""

import time
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric

from recipes.data.arguments import spelled
from recipes.data.studies import StudySource, StudySplit
from recipes.data.verify import verify_images
from recipes.medvlmoe.baselines.checks import check_baseline
from recipes.medvlmoe.baselines.config import trains_on_pairs
from recipes.medvlmoe.baselines.model import PairModel
from recipes.medvlmoe.baselines.stage import check_pairs, contrastive_stage, pair_note, pair_texts, paired
from recipes.medvlmoe.baselines.training import ContrastObjective, PairLoss, validate_pairs
from recipes.medvlmoe.build import Model, load_model, new_model, save_architecture
from recipes.medvlmoe.config import Config, TrainConfig
from recipes.medvlmoe.data import Batch, StudyDataset, make_loader
from recipes.medvlmoe.fitted_bias import fit_to_studies_, studies_to_fit
from recipes.medvlmoe.modalities import ModalityDropout, check_rates, check_something_is_read
from recipes.medvlmoe.model import has_experts, reads_text, takes_text
from recipes.medvlmoe.objective import DiagnosisObjective
from recipes.medvlmoe.prepare import check_training, kept_in_eval, prepare_model, sharded_units
from recipes.medvlmoe.sources import SPELLING, build_source, texts_of
from recipes.medvlmoe.validate import choice_note, dead_experts, line, score, validate
from recipes.shared.checkpoints import MAY_CHANGE, checkpoint_to_resume
from recipes.shared.class_weights import balanced_class_weights
from recipes.shared.data_summary import study_summary
from recipes.shared.expert_parallel import check_expert_parallel, optimiser_options
from recipes.shared.fingerprint import check_unchanged, write_fingerprint
from recipes.shared.launched import with_launched_processes
from recipes.shared.limits import check_limits
from recipes.shared.loading import decoded_images
from recipes.shared.loggers import check_loggers
from recipes.shared.objective import Objective, train_epoch
from recipes.shared.outputs import check_folder
from recipes.shared.runs import write_json
from recipes.shared.strategy import launch
from recipes.shared.training import (
    check_on_first_rank,
    one_run_per_seed,
    run_epochs,
    starting_state,
)
from recipes.shared.weight_decay import parameter_groups

OWN_MAY_CHANGE = ("download", "strategy")
"""Settings of this recipe that a resumed run may change besides: where images come from, and how it computes."""


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
    check_baseline(config)
    check_training(config)
    config = with_launched_processes(config)
    check_expert_parallel(config.train, config.model.num_experts if has_experts(config.model) else None)
    return one_run_per_seed(config, train_stages)


def train_stages(config: Config) -> None:
    """Trains the contrastive stage of a run, if it has one that is not done, then the run itself."""
    stage = contrastive_stage(config)
    if stage is not None:
        train_one(stage)
    train_one(config)


def train_one(config: Config) -> None:
    """Trains one run, from its beginning or from its last checkpoint."""
    started = time.monotonic()
    settings, seed, out = config.train, config.seeds[0], config.out
    checkpoint = checkpoint_to_resume(config, may_change=(*MAY_CHANGE, *OWN_MAY_CHANGE))
    fabric = launch(settings, settings.strategy, units=sharded_units)
    torch.manual_seed(seed)

    source = build_source(config.data, config.model.image_size)
    fabric.print(_summary(config, source))
    if config.model.classifier != "none" and (note := choice_note(source.val, source.classes)):
        fabric.print(note)
    if checkpoint is not None:
        check_unchanged(out, source.splits(), data=config.data.data)
    if config.data.verify_images:
        check_on_first_rank(fabric, lambda: spelled(SPELLING)(verify_images)(source.splits(), config.data.data))
    texts = {name: texts_of(split, config.data) for name, split in source.splits()}
    if checkpoint is None:
        by_contrast = trains_on_pairs(config.model.classifier)
        train_texts = pair_texts(source.train, source, config) if by_contrast else texts["train"]
        model = new_model(config, [text for text in train_texts if text], source.classes, source.task)
    else:
        model = load_model(out, "last")[0]  # from the run's folder: no hub is asked again
    reads = takes_text(model)
    check_rates(settings.drop_image, settings.drop_text, reads_text=reads)
    check_something_is_read(config.data.data, source.splits(), texts, reads_text=reads)
    train_loader, val_loader = _loaders(config, source, model, fabric)
    prepare_model(model, settings, fabric.device)
    if fabric.is_global_zero:
        save_architecture(model, source.classes, source.task, out)
        write_json(out / "config.json", config.to_json())
        write_fingerprint(out, source.splits())
    on_pairs = isinstance(model, PairModel)
    wrapped = fabric.setup_module(PairLoss(model) if on_pairs else model)
    # Over the shards, where there are some.
    optimizer = torch.optim.AdamW(_parameter_groups(model, settings), **optimiser_options(settings))
    state = starting_state(checkpoint, model, optimizer, fabric)
    optimizer = fabric.setup_optimizers(optimizer)
    class_weights = None
    if settings.class_weights == "balanced":
        class_weights = balanced_class_weights(source.train.labels, source.task).to(fabric.device)
    objective: Objective[Batch] = DiagnosisObjective(model, settings, class_weights)
    if on_pairs:
        objective = ContrastObjective(gather=fabric.world_size > 1)
    in_eval = kept_in_eval(model, settings)
    to_fit = studies_to_fit(source.train, config, model)

    def one_epoch(epoch: int) -> dict[str, Any]:
        train_loader.batch_sampler.epoch = epoch
        record = train_epoch(
            fabric,
            wrapped,
            optimizer,
            train_loader,
            len(train_loader),
            objective,
            settings,
            seed=seed,
            epoch=epoch,
            kept_in_eval=in_eval,
        )
        return record | _learning_rates(optimizer)

    def validate_epoch() -> dict[str, Any]:
        if config.model.classifier == "none":
            return validate_pairs(fabric, model, val_loader)
        if to_fit is not None:
            with fabric.autocast():
                fit_to_studies_(model, to_fit, fabric.device)
        return validate(fabric, model, val_loader, source)

    run_epochs(
        fabric,
        model,
        optimizer,
        state,
        settings,
        out=out,
        started=started,
        train_epoch=one_epoch,
        validate=validate_epoch,
        score=score,
        line=line,
        remedy="lower --lr-encoder or --lr-head, or use another --precision",
    )
    warning = dead_experts(state, len(source.val), config.model.top_k)
    if warning is not None:
        fabric.print(f"warning: on the validation split {warning}. See docs/medvlmoe-experts.md.")


def _summary(config: Config, source: StudySource) -> str:
    """Returns what the data hold, with the texts that the model reads."""
    texts = {name: texts_of(split, config.data) for name, split in source.splits()}
    if trains_on_pairs(config.model.classifier):
        return study_summary(source, texts) + pair_note(source, config)
    unread = "" if reads_text(config.model) else f"\n  note: --variant {config.model.variant} reads no text"
    return study_summary(source, {name: [] for name in texts} if unread else texts) + unread


def _loaders(config: Config, source: StudySource, model: Model, fabric: Fabric) -> tuple[Any, Any]:
    """Makes the loaders of training and validation; those of a contrast hold the studies that have a text."""
    settings, seed = config.train, config.seeds[0]
    on_pairs = isinstance(model, PairModel)

    def texts(split: StudySplit) -> list[str | None]:
        return pair_texts(split, source, config) if on_pairs else texts_of(split, config.data)

    tokenizer = None if model.text_encoder is None else model.text_encoder.tokenizer
    common: dict[str, Any] = {
        "text_tokens": config.model.text_tokens,
        "cache": settings.cache_images,
        "slices": config.model.slices,
    }
    spec = model.image_encoder.spec
    place = {"rank": fabric.global_rank, "world_size": fabric.world_size}
    train = StudyDataset(
        source.train,
        texts(source.train),
        tokenizer,
        spec,
        augment_seed=seed if settings.augment else None,
        stored=decoded_images(source.train, "train", spec.size, settings, shown=fabric.is_global_zero),
        dropout=ModalityDropout(settings.drop_image, settings.drop_text, seed),
        **common,
    )
    stored = decoded_images(source.val, "val", spec.size, settings, shown=fabric.is_global_zero)
    val = StudyDataset(source.val, texts(source.val), tokenizer, spec, stored=stored, **common)
    if on_pairs:
        check_pairs(source.train, texts(source.train), config.model.contrast.objective)
        train = paired(train, texts(source.train), config.model.contrast.objective)
    if config.model.classifier == "none":
        val = paired(val, texts(source.val), config.model.contrast.objective)
    return make_loader(train, settings, seed=seed, **place), make_loader(val, settings, seed=None, **place)


def _parameter_groups(model: Model, settings: TrainConfig) -> list[dict[str, Any]]:
    """Groups encoders and the rest with their own learning rates; weight decay on matrices only."""
    return parameter_groups(
        model,
        weight_decay=settings.weight_decay,
        rates={"encoder": settings.lr_encoder, "head": settings.lr_head},
        part_of=lambda name: "encoder" if name.startswith(("image_encoder.", "text_encoder.")) else "head",
    )


def _learning_rates(optimizer: torch.optim.Optimizer) -> dict[str, float | None]:
    rates = {group["part"]: float(group["lr"]) for group in optimizer.param_groups}
    return {"lr_encoder": rates.get("encoder"), "lr_head": rates.get("head")}
