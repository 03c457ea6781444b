"""What MedVLMoE is trained for: the task's loss and the balance of the experts."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from moekit import SparseMoE, TopKRouter, all_reduce_stats, router_entropy
from recipes.medvlmoe.balance import BalanceLosses
from recipes.medvlmoe.config import TrainConfig
from recipes.medvlmoe.data import Batch
from recipes.medvlmoe.fitted_bias import RecentDecisions, fit_bias_
from recipes.medvlmoe.model import MedVLMoE
from recipes.shared.objective import Objective, StepLoss
from recipes.shared.scores.expert_load import load_record


class DiagnosisObjective(Objective[Batch]):
    """The task's loss, plus the router's losses where there is a router.

    Args:
        model: The model itself, not what wraps it.
        settings: Of the training.
        class_weights: ``(2, C)`` on the model's device, or ``None``.
    """

    def __init__(self, model: MedVLMoE, settings: TrainConfig, class_weights: Tensor | None = None) -> None:
        self.model, self.settings, self.class_weights = model, settings, class_weights
        self.balance = BalanceLosses(settings)
        self.decisions = RecentDecisions() if settings.balance == "fitted" else None
        self.is_sparse = isinstance(getattr(model, "experts", None), SparseMoE)

    def counts(self, batch: Batch) -> Tensor:
        """Counts known labels, over which the task's loss is a mean, and studies, over which the router's are."""
        known = self.model.head.known_labels(batch.labels).sum()
        return torch.stack([known, torch.full_like(known, len(batch.labels))])

    def loss(self, forward: Callable[..., Any], batch: Batch, shares: Tensor) -> StepLoss:
        """Computes the loss of a micro-batch; statistics of the router are those of all ranks."""
        output = forward(*batch.inputs())
        known, studies = self.counts(batch)
        task = self.model.head.loss(output.logits, batch.labels, self.class_weights)
        loss = shares[0] * task
        sums = {"task": task * known, "known": known, "studies": studies}
        if output.stats is not None:
            stats = all_reduce_stats(output.stats)
            balance, z = self.balance(stats)
            entropy = router_entropy(stats)
            of_router = self.balance.weighted(balance, z) + self.settings.entropy_weight * entropy
            loss = loss + shares[1] * of_router
            sums |= {"balance": balance * studies, "z": z * studies, "entropy": entropy * studies}
            sums["load"] = stats.tokens_per_expert
            if self.decisions is not None:
                self.decisions.add(output.routing)
        return StepLoss(loss, sums)

    def end_step(self) -> None:
        """Moves the selection bias, where the balance is kept by one."""
        counts = self.balance.step_done()
        recent = None if self.decisions is None else self.decisions.end_step()
        if self.settings.balance not in ("bias", "fitted") or counts is None:
            return
        assert isinstance(self.model.experts, SparseMoE)
        router = self.model.experts.router
        assert isinstance(router, TopKRouter)
        if recent is None:
            router.update_bias_(counts, self.settings.balance_weight)
        else:
            fit_bias_(router, recent, sweeps=1)

    def record(self, sums: Mapping[str, Tensor]) -> dict[str, Any]:
        """Returns mean losses, the router's mean entropy and the load; without a router ``None``, and no load."""
        if self.decisions is not None:
            self.decisions.clear()
        studies = max(1.0, float(sums["studies"]))
        task = float(sums["task"]) / max(1.0, float(sums["known"]))
        balance, z, entropy = (float(sums.get(name, 0.0)) / studies for name in ("balance", "z", "entropy"))
        return {
            "train_loss": task + self.balance.weighted(balance, z) + self.settings.entropy_weight * entropy,
            "task_loss": task,
            "balance_loss": balance if self.is_sparse else None,
            "z_loss": z if self.is_sparse else None,
            "router_entropy": entropy if self.is_sparse else None,
            **(load_record(sums["load"].tolist(), top_k=self.model.config.top_k) if self.is_sparse else {}),
        }
