"""The file of a record: versioned JSON, compressed by gzip. Reading it executes nothing."""

import gzip
import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from moekit.inspect.layer_record import LayerRecord
from moekit.inspect.windows import COLUMNS

FORMAT = "moekit routing record"
VERSION = 1
_MOST_BYTES = 2**30
"""Of the JSON: a small file may expand to more than the memory."""


def write_layers(layers: Mapping[str, LayerRecord], label_names: Sequence[str]) -> bytes:
    """Returns the file of a record."""
    text = json.dumps(as_json(layers, label_names), allow_nan=False, separators=(",", ":"))
    return gzip.compress(text.encode(), mtime=0)


def as_json(layers: Mapping[str, LayerRecord], label_names: Sequence[str]) -> dict[str, Any]:
    """Returns a record as numbers, strings, lists and dictionaries."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "label_names": list(label_names),
        "layers": [_layer_as_json(name, layer) for name, layer in layers.items()],
    }


def _layer_as_json(name: str, layer: LayerRecord) -> dict[str, Any]:
    return {
        "name": name,
        "num_experts": layer.num_experts,
        "top_k": layer.top_k,
        "max_windows": layer.max_windows,
        "width": layer.width,
        "columns": {column: _numbers(layer.column(column)) for column in COLUMNS},
        "load": _numbers(layer.load),
        "dropped": _numbers(layer.dropped) if bool(layer.dropped.any()) else None,
        "prob_sum": _numbers(layer.prob_sum),
        # It is symmetric: of each row what is right of the diagonal, and the diagonal.
        "coactivation": [_numbers(row[place:]) for place, row in enumerate(layer.coactivation)],
        "by_label": _numbers(layer.by_label),
    }


def _numbers(values: Tensor) -> Any:
    """Returns nested lists; whole numbers without a decimal point."""
    values = values.detach().cpu()
    whole = bool((values == values.round()).all())
    return cast(Any, (values.to(torch.int64) if whole else values).tolist())


def read_layers(path: str | Path) -> tuple[dict[str, LayerRecord], tuple[str, ...]]:
    """Reads the file of a record.

    Raises:
        ValueError: If the file is no record, of a later version, or damaged.
    """
    document = read_document(path)
    if document is None:
        raise ValueError(f"path must be a record that RoutingRecord.save() wrote, got {path}: it has another format.")
    if document.get("version") != VERSION:
        raise ValueError(
            f"path must be a record of version {VERSION}, got version {document.get('version')!r} in {path}: "
            "read it with the version of moekit that wrote it."
        )
    try:
        names = tuple(str(each) for each in document["label_names"])
        layers = {str(each["name"]): _layer_from_json(each, len(names)) for each in document["layers"]}
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"path must be an undamaged record, got {path}: {error!r}.") from error
    return layers, names


def read_document(path: str | Path) -> dict[str, Any] | None:
    """Returns the JSON of a record, or ``None`` for a file of another format."""
    try:
        with gzip.open(path) as file:
            text = file.read(_MOST_BYTES + 1)
        document: Any = json.loads(text) if len(text) <= _MOST_BYTES else None
    except (gzip.BadGzipFile, EOFError, zlib.error, UnicodeDecodeError, json.JSONDecodeError, RecursionError):
        return None
    if not isinstance(document, dict):
        return None
    known = cast(dict[str, Any], document)
    return known if known.get("format") == FORMAT else None


def _layer_from_json(stored: dict[str, Any], num_labels: int) -> LayerRecord:
    num_experts = int(stored["num_experts"])
    # Before anything is allocated for E experts.
    if len(stored["prob_sum"]) != num_experts or len(stored["coactivation"]) != num_experts:
        raise ValueError(f"sums of {len(stored['prob_sum'])} experts for num_experts={num_experts}")
    layer = LayerRecord(num_experts, num_labels=num_labels, max_windows=int(stored["max_windows"]))
    load = _tensor(stored["load"]).reshape(-1, layer.num_experts)
    dropped = torch.zeros_like(load) if stored["dropped"] is None else _tensor(stored["dropped"]).reshape(load.shape)
    columns = torch.stack([_tensor(stored["columns"][name]) for name in COLUMNS], dim=-1)
    windows = torch.cat([columns, load, dropped], dim=-1)
    if len(windows) > layer.max_windows:
        raise ValueError(f"{len(windows)} windows where at most {layer.max_windows} were kept")
    layer.fill(windows, top_k=int(stored["top_k"]), width=int(stored["width"]))
    layer.prob_sum = _tensor(stored["prob_sum"]).reshape(layer.prob_sum.shape)
    layer.by_label = _tensor(stored["by_label"]).reshape(layer.by_label.shape)
    for place, row in enumerate(stored["coactivation"]):
        both = _tensor(row).reshape(num_experts - place)
        layer.coactivation[place, place:] = layer.coactivation[place:, place] = both
    return layer


def _tensor(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)
