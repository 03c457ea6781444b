"""GradCache: the gradient of a loss over all micro-batches of a step, in the memory of one micro-batch.

A contrast of B pairs needs all B embeddings at once, but not the activations behind them. So

1. the features of each micro-batch are computed without a graph and kept;
2. the loss of all of them gives the gradient ``g`` of each feature ``f``;
3. each micro-batch is computed again, with a graph, and ``<f, g>`` is differentiated.

The sum of the gradients of step 3 is that of the loss, by the chain rule. What is drawn at random (dropout) is drawn
the same in steps 1 and 3. Gao et al. 2021, "Scaling deep contrastive learning batch size under memory limited setup",
https://arxiv.org/abs/2101.06983, whose code, https://github.com/luyug/GradCache, does the same.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from recipes.shared.batch_norm import batch_norms

Batch = TypeVar("Batch")


def cached_backward(
    fabric: Fabric,
    wrapped: nn.Module,
    batches: Sequence[Batch],
    features_of: Callable[[Batch], Any],
    loss_of: Callable[[Sequence[Any]], Tensor],
) -> None:
    """Adds the gradient of a loss over all micro-batches to the gradients of the weights.

    Batch norms in training mode normalise each micro-batch by itself, as always when gradients are accumulated, and
    count its statistics once. Without them the gradient is that of one large batch.

    Args:
        fabric: Of the run.
        wrapped: The model as fabric set it up.
        batches: The micro-batches, at least one.
        features_of: Calls the model on a micro-batch: tensors in tuples, lists or dicts, the same structure each time.
            What is trained reaches the loss through them alone.
        loss_of: The loss, from the features of all micro-batches.
    """
    kept, states = [], []
    with torch.no_grad(), _uncounted(wrapped):
        for batch in batches:
            states.append(_random_state(fabric.device))
            kept.append(features_of(batch))
    leaves = [pytree.tree_map_only(Tensor, _leaf, features) for features in kept]
    flat = [pytree.tree_leaves(features) for features in leaves]
    wanted = [leaf for one in flat for leaf in one if isinstance(leaf, Tensor) and leaf.requires_grad]
    scale = _loss_scale(fabric)
    loss = loss_of(leaves)
    # Of the scaled loss: in half precision small gradients would be lost.
    gradients = iter(torch.autograd.grad(loss * scale, wanted, allow_unused=True))
    of_leaves = [
        [next(gradients) if isinstance(leaf, Tensor) and leaf.requires_grad else None for leaf in one] for one in flat
    ]
    del kept, leaves, flat, wanted, loss
    for number, batch in enumerate(batches):
        _set_random_state(states[number], fabric.device)
        with fabric.no_backward_sync(wrapped, enabled=number + 1 < len(batches)):
            features = pytree.tree_leaves(features_of(batch))
            parts = [
                (_wide(feature) * (_wide(gradient) / scale)).sum()
                for feature, gradient in zip(features, of_leaves[number], strict=True)
                if gradient is not None and feature.requires_grad
            ]
            fabric.backward(torch.stack(parts).sum())


def _leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().requires_grad_() if tensor.is_floating_point() else tensor


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _loss_scale(fabric: Fabric) -> Tensor:
    """Returns the factor by which ``fabric.backward`` multiplies losses: that of fp16, else 1."""
    one = torch.ones((), device=fabric.device)
    scaler = getattr(fabric.strategy.precision, "scaler", None)
    return one if scaler is None else scaler.scale(one)


@contextmanager
def _uncounted(model: nn.Module) -> Iterator[None]:
    """Keeps batch norms from counting what passes through them; they normalise as they would."""
    norms = [norm for norm in batch_norms(model) if norm.training and norm.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


def _random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def _set_random_state(state: tuple[Tensor, Tensor | None], device: torch.device) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)
