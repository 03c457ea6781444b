"""Recording: a context in which the layers of a model report what they route where."""

import re
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import torch
from torch import nn

from moekit.inspect.layer_record import LayerRecord, check_max_windows
from moekit.inspect.record import RoutingRecord
from moekit.observers import RoutingEvent, add_observer, prepared, remove_observer

# Wrappers that stand in a name without being part of the model.
_WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module)(?:\.|$)")


@contextmanager
def record_routing(
    model: nn.Module, *, label_names: Sequence[str] = (), max_windows: int = 64
) -> Generator[RoutingRecord]:
    """Records what the layers of a model route where, while the context is open.

    Layers are :class:`~moekit.SparseMoE` with any router, :class:`~moekit.SoftMoE`, and experts of transformers that
    compute by moekit's registered backend or are part of a swapped block. Of registered ones the probabilities are
    known in the families whose blocks may be swapped; of others, the decisions alone. Outputs, gradients and random
    numbers stay bit for bit the same. Sums only are kept, on the device of each layer, so the record does not grow with
    the number of calls, and nothing is read on the host before the context closes.

    - Works in training and evaluation, under ``no_grad``, ``inference_mode``, autocast and in half precision.
    - A call that activation checkpointing computes again in backward is counted once.
    - ``torch.compile``: compiled functions run eagerly while the context is open
      (``torch.compiler.set_stance("force_eager")``), as compiled code reports nothing. Their compiled code is used
      again afterwards. Code exported before, and CUDA graphs, as of :func:`~moekit.graphed`, report nothing.
    - Each rank records its own tokens; merge the records with ``parallel=True``.

    Args:
        model: Any module that holds such layers, or is one. Layers are named as in ``model.named_modules()``.
        label_names: Names of the labels that :meth:`RoutingRecord.label` may give to tokens.
        max_windows: Number of points over time, even. A record of many calls has fewer and wider windows.

    Yields:
        The record, which may be read at any time.

    Raises:
        ValueError: When the context closes, if no layer of the model reported anything; at once, if ``label_names``
            repeats a name or ``max_windows`` is not even.

    Example:
        >>> model = nn.Sequential(nn.Linear(8, 8), SparseMoE.ffn(8, 16, num_experts=4, top_k=2))
        >>> with record_routing(model[1]) as record:
        ...     for _ in range(3):
        ...         _ = model[1](torch.randn(10, 8))
        >>> record.layers["SparseMoE"].load.sum().item()
        60.0
    """
    check_max_windows(max_windows)
    names = _layer_names(model)
    record = RoutingRecord({}, label_names)
    of_routers: dict[nn.Module, RoutingEvent] = {}

    def observe(event: RoutingEvent) -> None:
        name = names.get(event.layer)
        if name is None:
            return
        if event.is_of_router:
            of_routers[event.layer] = event
            return
        router = of_routers.pop(event.layer, None)
        if router is not None and event.probs is None and _num_tokens(router) == _num_tokens(event):
            event = event._replace(probs=router.probs, valid=router.valid)
        if name not in record.layers:
            record.layers[name] = LayerRecord(
                event.num_experts, num_labels=len(record.label_names), max_windows=max_windows, device=_device(event)
            )
        record.layers[name].add(event, record.labels_of(name, _num_tokens(event)))

    add_observer(observe)
    try:
        with torch.compiler.set_stance("force_eager"), prepared(model):
            yield record
    finally:
        remove_observer(observe)
        for layer in record.layers.values():
            layer.to("cpu")
        order = {name: place for place, name in enumerate(names.values())}
        record.layers = dict(sorted(record.layers.items(), key=lambda item: order[item[0]]))
    if not record.layers:
        raise ValueError(
            "model must hold layers of moekit, or experts of transformers with moekit's backend, that are called while "
            f"they are recorded, got a {type(model).__name__} that reported no routing: call the model itself in "
            "the context, not exported code or a CUDA graph."
        )


def _layer_names(model: nn.Module) -> dict[nn.Module, str]:
    if isinstance(model, nn.parallel.DistributedDataParallel):
        model = cast(nn.Module, model.module)
    names: dict[nn.Module, str] = {}
    # torch's own types leave the modules unknown.
    for path, module in cast(Iterator[tuple[str, nn.Module]], model.named_modules()):
        name = _WRAPPERS.sub("", path).rstrip(".")
        names[module] = name or type(module).__name__
    return names


def _device(event: RoutingEvent) -> torch.device:
    tensor = next(each for each in event if isinstance(each, torch.Tensor))
    return tensor.device


def _num_tokens(event: RoutingEvent) -> int:
    of_tokens = (event.probs, event.valid, event.expert_ids)
    return next(each.shape[0] for each in of_tokens if each is not None)
