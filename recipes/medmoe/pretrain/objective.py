"""The losses of a batch of pairs: global and local contrast, and the supervision of the router."""

from typing import NamedTuple, TypeVar

from torch import Tensor

from moekit import (
    RouterStats,
    global_contrastive_loss,
    load_balancing_loss,
    local_contrastive_loss,
    router_label_loss,
    word_alignment_loss,
)
from recipes.medmoe.baselines.report_findings import ReportFindings
from recipes.medmoe.config import Config, ModelConfig, TrainConfig
from recipes.medmoe.data.batches import Batch
from recipes.medmoe.features import ImageFeatures, LocalFeatures, TextFeatures
from recipes.shared.semantic_matching import semantic_matching_loss

Loss = TypeVar("Loss", Tensor, float)


class Losses(NamedTuple):
    """Losses of a batch.

    Attributes:
        total: Their weighted sum.
        global_loss: Images against reports, one vector each; both directions added.
        local_loss: Regions against words; both directions added. 0 without a local branch.
        router_loss: Cross entropy of the router's logits with the known modalities; 0 where no router decides.
        balance_loss: Load-balancing loss of the router; 0 without its coefficient.
    """

    total: Tensor
    global_loss: Tensor
    local_loss: Tensor
    router_loss: Tensor
    balance_loss: Tensor


def pair_losses(
    batch: Batch,
    image: ImageFeatures,
    text: TextFeatures,
    local: LocalFeatures | None,
    model: ModelConfig,
    settings: TrainConfig,
    *,
    gather: bool = False,
    stats: RouterStats | None = None,
    findings: ReportFindings | None = None,
) -> Losses:
    """Computes the losses of a batch.

    Args:
        batch: The pairs.
        image: Of :meth:`~recipes.medmoe.model.MedMoE.forward`; so are the next two.
        text: The texts' features.
        local: The experts' features, or what stands in their place.
        model: The architecture's settings: temperatures.
        settings: The training's settings: coefficients and forms.
        gather: Whether contrasts run over the batches of all ranks, where the settings say so.
        stats: What the load is balanced by, such as the statistics of all ranks; those of the batch by default.
        findings: Reads the findings of the reports, by which images and reports are matched then.
    """
    scale = model.temperatures[2] if image.scale is None else image.scale
    contrast = _global_loss(batch, image, text, settings, scale, findings, gather=gather and settings.gather)
    router_loss = balance = contrast.new_zeros(())
    word_loss = router_loss
    if local is not None:
        word_loss = _word_loss(local, text, batch, model, settings, gather=gather and settings.gather_local)
    if local is not None and local.routing is not None and local.routing.logits is not None:
        router_loss = router_label_loss(local.routing.logits, batch.labels)
        if settings.balance_weight:
            counted = local.stats if stats is None else stats
            assert counted is not None
            balance = load_balancing_loss(counted)
    total = weighted_sum(settings, contrast, word_loss, router_loss, balance)
    return Losses(total, contrast, word_loss, router_loss, balance)


def weighted_sum(settings: TrainConfig, contrast: Loss, words: Loss, router: Loss, balance: Loss) -> Loss:
    """Adds up the global, the local, the router's and the balancing loss with their coefficients."""
    total = settings.global_weight * contrast + settings.local_weight * words
    return total + settings.router_weight * router + settings.balance_weight * balance


def step_loss(losses: Losses, settings: TrainConfig, of_pairs: Tensor, of_known: Tensor) -> Tensor:
    """Computes a micro-batch's part of the loss of an optimiser step.

    The router's supervision is a mean over the known modalities of the whole step, everything else over its pairs. A
    contrast has only the pairs of its own micro-batch to tell apart (on all ranks, where it gathers): accumulating
    does not make its batch larger, unless all micro-batches of a step are one, as with ``grad_cache``.

    Args:
        losses: Of the micro-batch.
        settings: Coefficients.
        of_pairs: The micro-batch's share of the step's pairs; see :func:`~recipes.shared.steps.take_step`.
        of_known: Its share of the pairs of known modality.
    """
    return weighted_sum(
        settings,
        of_pairs * losses.global_loss,
        of_pairs * losses.local_loss,
        of_known * losses.router_loss,
        of_pairs * losses.balance_loss,
    )


def check_settings(config: Config) -> None:
    """Refuses settings of the losses that would not be used.

    Raises:
        ValueError: Naming the options.
    """
    settings = config.train
    if settings.grad_cache and settings.accumulate == 1:
        raise ValueError(
            "grad_cache (--grad-cache) contrasts the micro-batches of a step together, of which there is one: give "
            "--accumulate, or leave it out."
        )
    if settings.gather_local and settings.local_form == "report":
        raise ValueError(
            "gather_local (--gather-local) compares pairs of several devices, but the report form of the local loss "
            "compares none: leave it out, or give --local-form batch."
        )
    if config.model.learned_temperature and config.train.local_form == "report":
        raise ValueError(
            "learned_temperature trains the first temperature, which the report form of the local loss does not have: "
            "leave out --learned-temperature, or give --local-form batch."
        )


def _global_loss(
    batch: Batch,
    image: ImageFeatures,
    text: TextFeatures,
    settings: TrainConfig,
    scale: Tensor | float,
    findings: ReportFindings | None,
    *,
    gather: bool,
) -> Tensor:
    """Computes the contrast of whole images and texts, both directions added."""
    if findings is not None:
        named, has_text = findings(batch.tokens), batch.tokens.attention_mask.any(1)
        return 2 * semantic_matching_loss(image.embedding, text.embedding, named, has_text, scale)

    def contrast(directions: str) -> Tensor:
        return global_contrastive_loss(
            image.embedding,
            text.embedding,
            logit_scale=scale,
            text_ids=batch.text_ids,
            directions=directions,
            gather=gather,
        )

    if settings.global_directions != "both":
        return contrast(settings.global_directions)
    weight = settings.image_to_text_weight
    if weight == 0.5:
        return 2 * contrast("both")  # the library's losses are means over directions
    return 2 * (weight * contrast("image-to-text") + (1 - weight) * contrast("text-to-image"))


def _word_loss(
    local: LocalFeatures,
    text: TextFeatures,
    batch: Batch,
    model: ModelConfig,
    settings: TrainConfig,
    *,
    gather: bool,
) -> Tensor:
    """Computes the local loss: the sum of both directions in the batch form, the one direction in the report form."""
    if settings.local_form == "report":
        return word_alignment_loss(
            local.places,
            text.words,
            text.mask,
            temperature=1 / model.temperatures[2],
            aggregation=settings.word_aggregation,
            similarity=model.attention,
            region_mask=local.region_mask,
        ).loss
    contrast = local_contrastive_loss(
        local.places,
        text.words,
        text.mask,
        temperatures=(local.first_temperature(model), *model.temperatures[1:]),
        aggregation=settings.word_aggregation,
        word_softmax=model.word_softmax,
        similarity=model.attention,
        region_mask=local.region_mask,
        text_ids=batch.text_ids,
        gather=gather,
    )
    return 2 * contrast.loss
