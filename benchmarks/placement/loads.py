"""Loads of experts over time: drawn by Zipf's law, or recorded. Letters: W windows of steps, E experts."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.options import OptionError
from moekit.inspect import RoutingRecord


class Drawn(NamedTuple):
    """Loads that are drawn.

    Attributes:
        experts: ``E``.
        windows: ``W``.
        slots: Tokens times experts per token of a window, of all ranks.
        exponent: Of Zipf's law: the expert of rank ``r`` has a share in proportion to ``r ** -exponent``.
        drift: Share of the experts that change places in the order between two windows.
        seed: Of the generator.
    """

    experts: int
    windows: int
    slots: int
    exponent: float
    drift: float
    seed: int


def zipf_loads(drawn: Drawn) -> Tensor:
    """Draws the slots of each expert in each window.

    Popularity follows Zipf's law, its order is drawn, and some experts change places in it between windows.

    Returns:
        ``(W, E)``, float64.
    """
    generator = torch.Generator().manual_seed(drawn.seed)
    weights = torch.arange(1, drawn.experts + 1, dtype=torch.float64) ** -drawn.exponent
    order = torch.randperm(drawn.experts, generator=generator)
    loads = torch.empty(drawn.windows, drawn.experts, dtype=torch.float64)
    moved = round(drawn.drift * drawn.experts)
    for window in loads:
        chosen = weights[order].multinomial(drawn.slots, replacement=True, generator=generator)
        window.copy_(chosen.bincount(minlength=drawn.experts))
        places = torch.randperm(drawn.experts, generator=generator)[:moved]
        order[places] = order[places.roll(1)]
    return loads


def recorded_loads(path: Path, layer: str | None, line: int) -> tuple[str, Tensor]:
    """Reads the loads of a layer.

    Args:
        path: A :class:`~moekit.inspect.RoutingRecord`, or lines of JSON with ``load``, for each layer the slots of
            each expert by window, as ``python -m benchmarks balance`` writes them.
        layer: Its name; the last one if None.
        line: Which line, from 0.

    Returns:
        The name of the layer, and ``(W, E)``.

    Raises:
        OptionError: If there is no such file, line or layer.
    """
    if not path.exists():
        raise OptionError(f"--loads must be zipf or a file, got {path}, which does not exist.")
    layers = _from_lines(path, line) if path.suffix == ".jsonl" else _from_record(path)
    name = list(layers)[-1] if layer is None else layer
    if name not in layers:
        raise OptionError(f"--layer must be one of {', '.join(layers)}, got {name}.")
    return name, layers[name].double()


def _from_record(path: Path) -> dict[str, Tensor]:
    try:
        record = RoutingRecord.load(path)
    except ValueError as error:
        raise OptionError(f"--loads must be a routing record or a .jsonl file: {error}") from error
    return {name: layer.load for name, layer in record.layers.items()}


def _from_lines(path: Path, line: int) -> dict[str, Tensor]:
    lines = path.read_text().splitlines()
    if not 0 <= line < len(lines):
        raise OptionError(f"--line must be from 0 to {len(lines) - 1} in {path}, got {line}.")
    loads: dict[str, Any] = json.loads(lines[line]).get("load", {})
    if not loads:
        raise OptionError(f'line {line} of {path} must have loads of layers under "load", got none: see --line.')
    return {name: torch.tensor(experts).T for name, experts in loads.items()}
