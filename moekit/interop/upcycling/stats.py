"""Statistics of the layers in a model whose modules return one tensor."""

from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import nn

from moekit.layer import MoEOutput, SparseMoE
from moekit.routing import RouterStats

# No public name tells whether backward runs; torch.utils.checkpoint asks the same.
_graph_task: Callable[[], int] = torch._C._current_graph_task_id  # pyright: ignore


@contextmanager
def collect_stats(model: nn.Module) -> Generator[dict[str, RouterStats]]:
    """Collects the statistics of the sparse layers in a model, with gradients, while the context is open.

    For models whose modules return one tensor, as after :func:`~moekit.interop.upcycle_`, so that statistics cannot be
    returned along. They are read by forward hooks on each :class:`~moekit.SparseMoE`, which the context
    adds and removes; calls in the context add up.

    - Micro-batches: open it for each, or for all and clear the dict after each ``backward``.
    - ``torch.compile``: open the context before the first call and keep it open over the steps, clearing the dict after
      each. A model that was compiled without it does not see its hooks, which is an error when the context closes.
    - Activation checkpointing: ``use_reentrant=False``; with ``True`` the statistics have no gradient.

    Args:
        model: A model that holds :class:`~moekit.SparseMoE`.

    Yields:
        The statistics by the name of the layer, filled as the model is called.

    Raises:
        ValueError: If the model has no such layer; when the context closes, if none reported anything.

    Example:
        >>> from moekit.interop import upcycle_
        >>> model = nn.Sequential(nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)))
        >>> _ = upcycle_(model, "0", num_experts=4, top_k=2)
        >>> with collect_stats(model) as stats:
        ...     loss = model(torch.randn(10, 8)).square().mean()
        >>> loss = loss + 0.01 * sum(load_balancing_loss(each) for each in stats.values())
        >>> loss.backward()
        >>> {name: int(each.num_tokens) for name, each in stats.items()}
        {'0.moe': 10}
    """
    # torch's own types leave it partially unknown.
    modules = cast(Iterable[tuple[str, nn.Module]], model.named_modules())
    layers = {name: module for name, module in modules if isinstance(module, SparseMoE)}
    if not layers:
        raise ValueError(f"model must hold a SparseMoE, got a {type(model).__name__} without any: upcycle it first.")
    collected: dict[str, RouterStats] = {}
    reported: dict[str, bool] = {}
    handles = [
        handle
        for name, layer in layers.items()
        for handle in (
            layer.register_forward_pre_hook(_with_stats, with_kwargs=True),
            layer.register_forward_hook(_collector(name or type(layer).__name__, collected, reported)),
        )
    ]
    try:
        yield collected
    finally:
        for handle in handles:
            handle.remove()
    if not reported:
        raise ValueError(
            f"model must be called while its statistics are collected, got a {type(model).__name__} whose layers "
            "reported nothing: if it is compiled, open the context before its first call."
        )


def _with_stats(layer: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    return args, {**kwargs, "stats": True}


def _collector(name: str, collected: dict[str, RouterStats], reported: dict[str, bool]) -> Callable[..., None]:
    def collect(layer: nn.Module, args: Any, output: MoEOutput) -> None:
        # What activation checkpointing computes again in backward was collected already.
        if not torch.compiler.is_compiling() and _graph_task() != -1:
            return
        reported[name] = True
        stats = cast(RouterStats, output.stats)
        collected[name] = collected[name] + stats if name in collected else stats

    return collect
