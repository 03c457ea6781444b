"""Means over an epoch: losses and figures of the routing, from sums over batches and ranks."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from recipes.medmoe.config import TrainConfig
from recipes.medmoe.data.batches import UNKNOWN, Batch
from recipes.medmoe.features import LocalFeatures
from recipes.medmoe.pretrain.objective import Losses, weighted_sum
from recipes.shared.scores.expert_load import load_record


def batch_sums(losses: Losses, local: LocalFeatures | None, batch: Batch) -> dict[str, Tensor]:
    """Returns what an epoch adds up of one batch: losses times what they are means over, and counts.

    Args:
        losses: Its mean losses: the router's over the known modalities, the others over the pairs.
        local: What the experts made of it, with the routing; ``None`` without a local branch.
        batch: The pairs, on the same device.
    """
    known = batch.labels != UNKNOWN
    labelled = known.sum()
    pairs = known.new_full((), len(batch.labels), dtype=labelled.dtype)
    sums = {"global_loss": losses.global_loss * pairs, "skipped": batch.skipped, "pairs": pairs}
    if local is not None:
        sums["local_loss"] = losses.local_loss * pairs
    if local is not None and local.routing is not None and local.stats is not None:
        right = (local.routing.expert_ids[:, 0] == batch.labels) & known
        sums |= {
            "router_loss": losses.router_loss * labelled,
            "balance_loss": losses.balance_loss * pairs,
            "load": local.stats.tokens_per_expert,
            "entropy": local.stats.entropy_sum,
            "routed": local.stats.num_tokens,
            "right": right.sum(),
            "known": labelled,
        }
    return sums


def means_of(sums: Mapping[str, Tensor], settings: TrainConfig) -> dict[str, Any]:
    """Returns the means over the pairs of all ranks, as ``history.jsonl`` names them.

    The accuracy of the routing is ``None`` where no modality is known. Without experts there are no figures of the
    routing, and the losses of parts that the model lacks are ``None``.

    Args:
        sums: Of :func:`batch_sums`, over all batches and ranks, on the CPU.
        settings: Coefficients of the losses.
    """
    total = {name: float(value) for name, value in sums.items() if name != "load"}
    pairs, known = max(1.0, total["pairs"]), max(1.0, total.get("known", 0.0))
    means: dict[str, Any] = {
        name: total[name] / pairs if name in total else None for name in ("global_loss", "local_loss", "balance_loss")
    }
    means["router_loss"] = total["router_loss"] / known if "router_loss" in total else None
    losses = (means[name] or 0.0 for name in ("global_loss", "local_loss", "router_loss", "balance_loss"))
    about = {"loss": weighted_sum(settings, *losses), **means, "skipped": int(total["skipped"])}
    if "load" not in sums:
        return about | {"router_entropy": None, "routing_accuracy": None}
    return about | {
        **load_record(sums["load"].tolist(), top_k=1),
        "router_entropy": total["entropy"] / max(1.0, total["routed"]),
        "routing_accuracy": total["right"] / total["known"] if total["known"] else None,
    }
