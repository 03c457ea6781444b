"""Contrast as an objective of the recipe's one loop over an epoch, and its loss on the validation split."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn

from recipes.medvlmoe.baselines.model import PairModel
from recipes.medvlmoe.baselines.objectives import PairLosses, hashed_texts, pair_losses
from recipes.medvlmoe.data import Batch
from recipes.shared.objective import Objective, StepLoss
from recipes.shared.sums import DeviceSums


class PairLoss(nn.Module):
    """The losses of a batch of pairs, as the forward of a module: what wraps it for several devices is called too.

    Args:
        model: The model.
    """

    def __init__(self, model: PairModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch, *, gather: bool = False) -> PairLosses:
        """Computes the losses of a batch."""
        features = self.model.pairs(batch.images, batch.input_ids, batch.text_mask)
        return pair_losses(
            self.model.config.contrast,
            features,
            batch.labels,
            batch.text_mask.any(1),
            hashed_texts(batch.input_ids, batch.text_mask),
            gather=gather,
        )


class ContrastObjective(Objective[Batch]):
    """The contrast of images and texts.

    A contrast has only the pairs of its own micro-batch to tell apart (on all ranks, where it gathers): accumulating
    does not make its batch larger.

    Args:
        gather: Whether the global contrast runs over the batches of all ranks.
    """

    def __init__(self, *, gather: bool) -> None:
        self.gather = gather

    def counts(self, batch: Batch) -> Tensor:
        """Counts pairs, over which all losses are means."""
        return torch.tensor([len(batch.labels)], device=batch.labels.device)

    def loss(self, forward: Callable[..., Any], batch: Batch, shares: Tensor) -> StepLoss:
        """Computes the losses of a micro-batch; ``forward`` is a :class:`PairLoss`."""
        losses = forward(batch, gather=self.gather)
        return StepLoss(shares[0] * losses.total, _sums(losses, batch))

    def record(self, sums: Mapping[str, Tensor]) -> dict[str, Any]:
        """Returns mean losses; ``None`` for the parts that the objective does not have."""
        means = {name: float(value / sums["pairs"].clamp(min=1)) for name, value in sums.items() if name != "pairs"}
        return {"train_loss": means.pop("total")} | {name: value or None for name, value in means.items()}


@torch.no_grad()
def validate_pairs(fabric: Fabric, model: PairModel, loader: Any) -> dict[str, Any]:
    """Computes the contrast on the validation split, gathered from all ranks; each contrasts its own batches.

    Returns:
        ``val_loss``; ``None`` where no validation study has a text.
    """
    training = model.training
    losses = PairLoss(model).eval()
    sums = DeviceSums()
    # Every rank has the same names to add up, though one may have no batch.
    sums.add({name: torch.zeros((), device=fabric.device) for name in (*PairLosses._fields, "pairs")})
    with fabric.autocast():
        for batch in loader:
            batch = batch.to(fabric.device)
            sums.add(_sums(losses(batch), batch))
    model.train(training)
    total = sums.over_ranks(fabric)
    return {"val_loss": float(total["total"] / total["pairs"]) if total["pairs"] else None}


def _sums(losses: PairLosses, batch: Batch) -> dict[str, Tensor]:
    """Returns the losses as sums over pairs."""
    pairs = torch.tensor(len(batch.labels), device=batch.labels.device)
    return {name: loss * pairs for name, loss in losses._asdict().items()} | {"pairs": pairs}
