"""Observers of routing decisions: what a layer tells while something records, and nothing otherwise.

A layer asks :func:`observed` and, where that holds, passes a :class:`RoutingEvent` to :func:`notify`. The forward pass
stays as it is: an observer receives detached tensors, writes only to its own and draws no random numbers.
"""

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from moekit_kernels.transforms import is_traced


class RoutingEvent(NamedTuple):
    """The routing of one call of a layer.

    Where a router and its experts are modules of their own, as in swapped blocks of transformers, the router reports
    ``probs`` and ``valid`` alone, for the layer that reports its decisions next: :attr:`is_of_router`.

    Attributes:
        layer: The module whose call it is; its name in the model is that of the layer.
        num_experts: ``E``.
        expert_ids: ``(T, K)`` chosen experts; an id of ``E`` or more marks a slot that is unused or computed elsewhere,
            and not counted. ``None`` for expert choice and for a layer without decisions (Soft MoE).
        token_ids: ``(E, C)`` chosen tokens for expert choice, else ``None``.
        kept: ``(E, C)``, False where an expert ran out of tokens; all by default.
        probs: ``(T, E)`` probabilities over experts, or ``None`` where only the decisions are known.
        valid: ``(T,)``, False for a token with non-finite logits; all valid by default.
        mask: ``(T,)``, True for real tokens; all by default.
        tokens_per_expert: ``(E,)`` slots before any is dropped; counted from the ids by default.
        dropped_per_expert: ``(E,)`` slots over capacity; none by default.
        prob_sum: ``(E,)`` sum of the probabilities, where ``probs`` is not kept.
        entropy_sum: ``()`` sum of their entropies, where ``probs`` is not kept.
    """

    layer: nn.Module
    num_experts: int
    expert_ids: Int[Tensor, "T K"] | None = None
    token_ids: Int[Tensor, "E C"] | None = None
    kept: Bool[Tensor, "E C"] | None = None
    probs: Float[Tensor, "T E"] | None = None
    valid: Bool[Tensor, "T"] | None = None
    mask: Bool[Tensor, "T"] | None = None
    tokens_per_expert: Int[Tensor, "E"] | None = None
    dropped_per_expert: Int[Tensor, "E"] | None = None
    prob_sum: Float[Tensor, "E"] | None = None
    entropy_sum: Float[Tensor, ""] | None = None

    @property
    def is_of_router(self) -> bool:
        """Whether it holds probabilities alone, of the call that the layer reports next."""
        return self.expert_ids is None and self.token_ids is None and self.tokens_per_expert is None


Observer = Callable[[RoutingEvent], None]

Preparation = Callable[[nn.Module], AbstractContextManager[object]]

_OBSERVERS: list[Observer] = []
_PREPARATIONS: list[Preparation] = []

# No public names tell whether backward runs (torch.utils.checkpoint asks the same), or a transform is active.
_graph_task: Callable[[], int] = torch._C._current_graph_task_id  # pyright: ignore
_transforms_active: Callable[[], bool] = torch._C._are_functorch_transforms_active  # pyright: ignore


def observed() -> bool:
    """Returns whether a call should be reported: something observes, and the call is an eager forward pass.

    False while the call is traced (``torch.compile``, ``torch.export``, ``make_fx``), so no graph holds anything of
    this; under transforms of ``torch.func``, whose tensors no observer may keep; and inside of a backward
    pass, where activation checkpointing computes the same call again.
    """
    # First, because the compiler evaluates it and then guards nothing of what follows.
    if torch.compiler.is_compiling() or not _OBSERVERS:
        return False
    return _graph_task() == -1 and not _transforms_active() and not is_traced()


def notify(event: RoutingEvent) -> None:
    """Passes an event to all observers, its tensors detached."""
    tensors = {name: each.detach() for name, each in event._asdict().items() if isinstance(each, Tensor)}
    detached = event._replace(**tensors)
    for observer in tuple(_OBSERVERS):
        observer(detached)


def add_observer(observer: Observer) -> None:
    """Starts to pass events to a function."""
    _OBSERVERS.append(observer)


def remove_observer(observer: Observer) -> None:
    """Stops to pass events to a function.

    Raises:
        ValueError: If it does not observe.
    """
    if observer not in _OBSERVERS:
        raise ValueError(f"observer must be one that was added, got {observer!r}.")
    _OBSERVERS.remove(observer)


def add_preparation(preparation: Preparation) -> None:
    """Has a context opened around each recording, with the model that is recorded; once, however often it is added.

    For modules of other libraries, which do not report by themselves.
    """
    if preparation not in _PREPARATIONS:
        _PREPARATIONS.append(preparation)


@contextmanager
def prepared(model: nn.Module) -> Generator[None]:
    """Opens the contexts that were added, for a model."""
    with ExitStack() as stack:
        for preparation in _PREPARATIONS:
            stack.enter_context(preparation(model))
        yield
