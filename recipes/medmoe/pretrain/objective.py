"""The losses of a batch of pairs: global and local contrast, and the supervision of the router."""

from typing import NamedTuple

from torch import Tensor

from moekit import global_contrastive_loss, load_balancing_loss, local_contrastive_loss, router_label_loss
from moekit.plan import plan_dispatch
from moekit.routing import RouterStats, router_stats
from recipes.medmoe.config import ModelConfig, TrainConfig
from recipes.medmoe.data.batches import Batch
from recipes.medmoe.model import ImageFeatures, LocalFeatures, TextFeatures


class Losses(NamedTuple):
    """Losses of a batch.

    Attributes:
        total: Their weighted sum; what is minimised.
        global_loss: Images against reports, one vector each; both directions added.
        local_loss: Regions against words; both directions added.
        router_loss: Cross entropy of the router's logits with the known modalities; 0 where none decides.
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
    local: LocalFeatures,
    model: ModelConfig,
    settings: TrainConfig,
    *,
    gather: bool = False,
) -> Losses:
    """Computes the training loss of a batch.

    Args:
        batch: The pairs.
        image: Of :meth:`~recipes.medmoe.model.MedMoE.forward`; so are the next two.
        text: The texts' features.
        local: The experts' features.
        model: The architecture's settings: temperatures.
        settings: The training's settings: coefficients and forms.
        gather: Whether the global contrast runs over the batches of all ranks.
    """
    both = 2 if settings.global_directions == "both" else 1  # the library's losses are means over directions
    contrast = both * global_contrastive_loss(
        image.embedding,
        text.embedding,
        logit_scale=model.temperatures[2],
        text_ids=batch.text_ids,
        directions=settings.global_directions,
        gather=gather,
    )
    word_loss = _word_loss(local.regions, text, batch, model, settings)
    router_loss = balance = contrast.new_zeros(())
    if local.routing.logits is not None:
        router_loss = router_label_loss(local.routing.logits, batch.labels)
        if settings.balance_weight:
            balance = load_balancing_loss(stats_of(local, model.num_experts))
    total = settings.global_weight * contrast + settings.local_weight * word_loss
    total = total + settings.router_weight * router_loss + settings.balance_weight * balance
    return Losses(total, contrast, word_loss, router_loss, balance)


def _word_loss(regions: Tensor, text: TextFeatures, batch: Batch, model: ModelConfig, settings: TrainConfig) -> Tensor:
    """The local loss: the sum of both directions of the batch form, or the one direction of the report form."""
    places = regions.flatten(2).mT
    if settings.local_form == "report":
        temperature = 1 / model.temperatures[2]
        return local_contrastive_loss(
            places,
            text.words,
            text.mask,
            form="report",
            temperature=temperature,
            aggregation=settings.word_aggregation,
        ).loss
    return (
        2
        * local_contrastive_loss(
            places,
            text.words,
            text.mask,
            temperatures=model.temperatures,
            aggregation=settings.word_aggregation,
            word_softmax=model.word_softmax,
            text_ids=batch.text_ids,
        ).loss
    )


def stats_of(local: LocalFeatures, num_experts: int) -> RouterStats:
    """What the router did with a batch."""
    routing = local.routing
    plan = plan_dispatch(routing.expert_ids, num_experts, kept=routing.valid.unsqueeze(-1))
    return router_stats(routing, plan)
