"""Means over an epoch: losses and figures of the routing, added up over batches and ranks."""

from typing import Any

import torch
from lightning.fabric import Fabric

from recipes.medmoe.config import TrainConfig
from recipes.medmoe.data.batches import UNKNOWN, Batch
from recipes.medmoe.model import LocalFeatures
from recipes.medmoe.pretrain.objective import Losses, weighted_sum
from recipes.shared.training import sum_over_ranks

SUMS = (
    *("global_loss", "local_loss", "router_loss", "balance_loss"),
    *("entropy", "routed", "right", "known", "skipped", "pairs"),
)


class Tally:
    """Sums over the batches of an epoch: losses times what they are means over, and counts."""

    def __init__(self) -> None:
        self.sums = torch.zeros(len(SUMS), dtype=torch.float64)

    def add(self, losses: Losses, local: LocalFeatures, batch: Batch) -> None:
        """Adds one batch.

        Args:
            losses: Its mean losses: the router's over the known modalities, the others over the pairs.
            local: What the experts made of it, with the routing.
            batch: The pairs.
        """
        known = batch.labels != UNKNOWN
        right = (local.routing.expert_ids[:, 0] == batch.labels) & known
        pairs, labelled = len(batch.labels), int(known.sum())
        self.sums += torch.tensor(
            [
                float(losses.global_loss.detach()) * pairs,
                float(losses.local_loss.detach()) * pairs,
                float(losses.router_loss.detach()) * labelled,
                float(losses.balance_loss.detach()) * pairs,
                float(local.stats.entropy_sum.detach()),
                float(local.stats.num_tokens),
                float(right.sum()),
                labelled,
                float(batch.skipped),
                pairs,
            ],
            dtype=torch.float64,
        )

    def means(self, fabric: Fabric, settings: TrainConfig) -> dict[str, Any]:
        """Returns the means over the pairs of all ranks, as ``history.jsonl`` names them.

        The accuracy of the routing is ``None`` where no modality is known.
        """
        sums = dict(zip(SUMS, sum_over_ranks(fabric, self.sums), strict=True))
        pairs, known = max(1.0, sums["pairs"]), max(1.0, sums["known"])
        means = {name: sums[name] / pairs for name in ("global_loss", "local_loss", "balance_loss")}
        means["router_loss"] = sums["router_loss"] / known
        total_loss = weighted_sum(
            settings, means["global_loss"], means["local_loss"], means["router_loss"], means["balance_loss"]
        )
        return {
            "loss": total_loss,
            **means,
            "router_entropy": sums["entropy"] / max(1.0, sums["routed"]),
            "routing_accuracy": sums["right"] / sums["known"] if sums["known"] else None,
            "skipped": int(sums["skipped"]),
        }
