"""A selection bias that is fitted to recent decisions, so that all experts get the same load.

Letters: N decisions, E experts, K of them chosen by each decision.
"""

from collections import deque
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from moekit import Routing, SparseMoE, TopKRouter
from recipes.data.studies import StudySplit
from recipes.medvlmoe.config import Config
from recipes.medvlmoe.data import Batch, StudyDataset, loader_of
from recipes.medvlmoe.model import MedVLMoE
from recipes.medvlmoe.sources import texts_of

ROWS = 256
"""Decisions that a micro-batch of one rank adds to the window; with more, every n-th one."""

WINDOW = 16
"""Optimiser steps whose decisions the bias is fitted to in training."""

STUDIES = 256
"""Training studies to which the bias is fitted in eval mode after each epoch."""

SWEEPS = 8
"""Of a fit from scratch; a step of the training goes on from the bias of the step before with one."""


def balanced_bias(
    scores: Tensor, top_k: int, *, weights: Tensor | None = None, start: Tensor | None = None, sweeps: int = SWEEPS
) -> Tensor:
    """Finds a selection bias with which decisions choose all experts equally often.

    Expert ``e`` is chosen where ``s_e + b_e`` is above ``t_e``, the ``K``-th largest of the other experts' biased
    scores. So with the others held fixed, ``b_e`` has its share of ``K / E`` of the decisions at a quantile of
    ``t_e - s_e``.
    Each sweep sets one expert after the other to it. This needs no rate, whatever the scores' scale: steps of a fixed
    size (loss-free balancing, https://arxiv.org/abs/2408.15664) are in units of the score.

    Args:
        scores: What the router ranks, without bias, ``(N, E)``.
        top_k: ``K``.
        weights: How much each decision counts, ``(N,)``; all the same by default.
        start: The bias to begin with, ``(E,)``; zeros by default.
        sweeps: How often each expert is set.

    Returns:
        ``(E,)`` float32, of mean 0. No value is read on the host.

    Raises:
        ValueError: If there is no decision.
    """
    if not len(scores):
        raise ValueError("scores must hold at least one decision, got none.")
    num_experts = scores.shape[1]
    scores = scores.float()
    bias = torch.zeros_like(scores[0]) if start is None else start.float().clone()
    if top_k >= num_experts:
        return bias
    weights = torch.ones_like(scores[:, 0]) if weights is None else weights.float()
    target = weights.sum() * (top_k / num_experts)
    for _ in range(sweeps):
        for expert in range(num_experts):
            others = scores + bias
            others[:, expert] = -torch.inf
            needed = others.topk(top_k, dim=-1).values[:, -1] - scores[:, expert]
            # Rows that do not count come last, so that a bias does not depend on how many there are.
            needed, order = needed.masked_fill(weights == 0, torch.inf).sort()
            reached = torch.searchsorted(weights[order].cumsum(0), target.unsqueeze(0))
            # Between the last decision that is to choose the expert and the first that is not.
            last = reached.clamp(max=len(scores) - 1)
            first_not = (last + 1).clamp(max=len(scores) - 1)
            upper = torch.where(needed[first_not].isinf(), needed[last], needed[first_not])
            bias[expert] = ((needed[last] + upper) / 2).squeeze(0)
        bias = bias - bias.mean()
    return bias


class RecentDecisions:
    """The router's scores of the last optimiser steps of all ranks, to which the bias is fitted."""

    def __init__(self) -> None:
        self.steps: deque[Tensor] = deque(maxlen=WINDOW)
        self.current: list[Tensor] = []

    def add(self, routing: Routing) -> None:
        """Adds the decisions of a micro-batch."""
        self.current.append(_rows_of(routing))

    def end_step(self) -> Tensor | None:
        """Ends an optimiser step; returns scores and, in the last column, weights ``(N, E + 1)``; ``None`` of none."""
        if not self.current:
            return None
        step, micro_batches = torch.cat(self.current), len(self.current)
        self.current = []
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            # Of one size on all ranks, however many studies each of them has.
            step = torch.cat([step, step.new_zeros(ROWS * micro_batches - len(step), step.shape[1])])
            parts = [torch.empty_like(step) for _ in range(dist.get_world_size())]
            dist.all_gather(parts, step)
            step = torch.cat(parts)
        self.steps.append(step)
        return torch.cat(list(self.steps))

    def clear(self) -> None:
        """Forgets all steps, so that an epoch depends on nothing that a checkpoint lacks."""
        self.steps.clear()


def fit_bias_(router: TopKRouter, decisions: Tensor, *, sweeps: int) -> None:
    """Sets a router's selection bias to balance decisions.

    Args:
        router: Built with ``selection_bias=True``.
        decisions: Scores and weights of :class:`RecentDecisions`, ``(N, E + 1)``.
        sweeps: As for :func:`balanced_bias`.
    """
    assert router.selection_bias is not None
    bias = balanced_bias(
        decisions[:, :-1], router.top_k, weights=decisions[:, -1], start=router.selection_bias, sweeps=sweeps
    )
    router.selection_bias.copy_(bias)


def studies_to_fit(train: StudySplit, config: Config, model: nn.Module) -> Any:
    """Returns batches of up to 256 training studies, spread over the split, not augmented.

    Args:
        train: The training split.
        config: Settings of the run.
        model: Its model.

    Returns:
        A loader; ``None`` where no selection bias is fitted.
    """
    if config.train.balance != "fitted" or not isinstance(getattr(model, "experts", None), SparseMoE):
        return None
    assert isinstance(model, MedVLMoE)
    dataset = StudyDataset(
        train,
        texts_of(train, config.data),
        None if model.text_encoder is None else model.text_encoder.tokenizer,
        model.image_encoder.spec,
        text_tokens=config.model.text_tokens,
        cache=True,
        slices=config.model.slices,
    )
    index = np.linspace(0, len(train) - 1, min(STUDIES, len(train))).astype(int)
    return loader_of(dataset, index, config.train)


@torch.no_grad()
def fit_to_studies_(model: nn.Module, batches: Iterable[Batch], device: torch.device) -> None:
    """Fits the selection bias to studies in eval mode, in which the model is validated, evaluated and used.

    Without dropout and with running statistics in the image encoder, scores are not those of the training's steps: a
    bias fitted to these may leave experts without any study. Every rank reads the same studies.

    Args:
        model: With a router that has a selection bias.
        batches: Of training studies, not augmented.
        device: Where to compute.
    """
    assert isinstance(model, MedVLMoE)
    assert isinstance(model.experts, SparseMoE)
    assert isinstance(model.experts.router, TopKRouter)
    training = model.training
    model.eval()
    rows = []
    for batch in batches:
        routing = model(*batch.to(device).inputs()).routing
        assert routing is not None
        rows.append(_rows_of(routing))
    model.train(training)
    fit_bias_(model.experts.router, torch.cat(rows), sweeps=SWEEPS)


@torch.no_grad()
def _rows_of(routing: Routing) -> Tensor:
    """Returns scores and weights of at most ``ROWS`` decisions, ``(N, E + 1)``; those of padding have the weight 0."""
    assert routing.probs is not None
    valid = routing.valid.float().unsqueeze(-1)
    rows = torch.cat([routing.probs.float().nan_to_num() * valid, valid], dim=-1)
    return rows[:: -(-len(rows) // ROWS)]
