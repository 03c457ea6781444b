"""Probabilities of routers of ``transformers``, reported to observers beside the decisions of their experts."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from moekit.interop.transformers._forms import FORMS
from moekit.interop.transformers._parts import modules_of
from moekit.observers import RoutingEvent, notify, observed
from moekit_kernels.routing.scores import probabilities, scores_of

_Hook = Callable[[nn.Module, Any, Any], None]


@contextmanager
def router_probabilities(model: nn.Module) -> Generator[None]:
    """Has the routers of known blocks report their probabilities while it is open, by forward hooks.

    A swapped block reports its own; a block of a class that is not in :data:`FORMS` reports decisions alone.
    """
    handles: list[RemovableHandle] = []
    for block in modules_of(model).values():
        form = FORMS.get(type(block).__name__)
        if form is not None and type(block).__module__.startswith("transformers.models."):
            router, experts = block.get_submodule(form.router), block.get_submodule("experts")
            handles.append(router.register_forward_hook(_reports(experts, form.scoring)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _reports(experts: nn.Module, scoring: str) -> _Hook:
    """Returns the hook of a router whose first output are its logits."""

    def report(router: nn.Module, args: Any, output: Any) -> None:
        logits = cast(object, output[0] if isinstance(output, tuple) and output else output)
        if not observed() or not isinstance(logits, Tensor) or not logits.is_floating_point() or logits.ndim < 2:
            return
        probs = _probabilities(logits.detach().reshape(-1, logits.shape[-1]).float(), scoring)
        valid = probs.isfinite().all(-1)
        notify(RoutingEvent(experts, probs.shape[-1], probs=probs.where(valid.unsqueeze(-1), 0.0), valid=valid))

    return report


def _probabilities(logits: Tensor, scoring: str) -> Tensor:
    probs = probabilities(logits, scores_of(logits, scoring), scoring)
    if scoring in ("sigmoid", "sqrt_softplus"):
        return probs
    # Routers of earlier versions return probabilities.
    are_probs = (logits >= 0).all(-1, keepdim=True) & ((logits.sum(-1, keepdim=True) - 1).abs() < 1e-2)
    return torch.where(are_probs, logits, probs)
