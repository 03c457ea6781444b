"""Tables of one layer: its experts, their load over time, co-activation, and experts of labels."""

import csv
import io
from collections.abc import Callable, Sequence
from typing import Literal, cast, get_args

from torch import Tensor

from moekit.inspect.layer_record import LayerRecord
from moekit.inspect.table import aligned

LayerTable = Literal["experts", "load", "coactivation", "labels"]
LAYER_TABLES = cast(tuple[LayerTable, ...], get_args(LayerTable))

_NO_LABEL = "(no label)"


def expert_text(layer: LayerRecord, label_names: Sequence[str]) -> str:
    """Returns one aligned line for each expert: its load, its companion, and its share of each label's slots.

    The companion is the expert that its tokens chose most often beside it.
    """
    load, dropped, slots = layer.load.sum(0), layer.dropped.sum(0), float(layer.load.sum())
    probs = _mean_probs(layer)
    shares = _label_shares(layer)
    headers = ["expert", "slots", "share", "x equal", "dropped", "mean prob", "most with", "of its tokens"]
    rows = [[*headers, *(label_names if shares else ())]]
    for expert, count in enumerate(_floats(load)):
        companion, together = _companion(layer, expert)
        row = [
            str(expert),
            f"{int(count):,}",
            _percent(count / slots) if slots else "-",
            f"{count * layer.num_experts / slots:.2f}" if slots else "-",
            _percent(float(dropped[expert]) / count) if count else "-",
            "-" if probs is None else f"{probs[expert]:.3f}",
            "-" if companion is None else str(companion),
            "-" if companion is None else _percent(together),
        ]
        rows.append([*row, *(_percent(of_label[expert]) for of_label in shares)])
    return aligned(rows)


def layer_csv(layer: LayerRecord, label_names: Sequence[str], table: LayerTable) -> str:
    """Returns one of the tables as comma-separated values; counts are of slots, empty where there is no figure.

    Raises:
        ValueError: If there is no such table.
    """
    if table not in LAYER_TABLES:
        raise ValueError(f"table must be one of {', '.join(map(repr, LAYER_TABLES))}, got {table!r}.")
    output = io.StringIO()
    writer = csv.writer(output, lineterminator="\n")
    writer.writerows(_ROWS[table](layer, label_names))
    return output.getvalue()


def _expert_rows(layer: LayerRecord, label_names: Sequence[str]) -> list[list[object]]:
    probs = _mean_probs(layer)
    columns: list[Sequence[object]] = [
        range(layer.num_experts),
        _numbers(layer.load.sum(0)),
        _numbers(layer.dropped.sum(0)),
        [None] * layer.num_experts if probs is None else probs,
    ]
    return [["expert", "slots", "dropped", "mean_prob"], *(list(row) for row in zip(*columns, strict=True))]


def _load_rows(layer: LayerRecord, label_names: Sequence[str]) -> list[list[object]]:
    calls = _numbers(layer.column("calls"))
    rows: list[list[object]] = [[number, *_numbers(load)] for number, load in zip(calls, layer.load, strict=True)]
    return [["calls", *range(layer.num_experts)], *rows]


def _coactivation_rows(layer: LayerRecord, label_names: Sequence[str]) -> list[list[object]]:
    rows: list[list[object]] = [[expert, *_numbers(row)] for expert, row in enumerate(layer.coactivation)]
    return [["expert", *range(layer.num_experts)], *rows]


def _label_rows(layer: LayerRecord, label_names: Sequence[str]) -> list[list[object]]:
    names = [*label_names, _NO_LABEL]
    rows: list[list[object]] = [[name, *_numbers(row)] for name, row in zip(names, layer.by_label, strict=True)]
    return [["label", *range(layer.num_experts)], *rows]


_ROWS: dict[LayerTable, Callable[[LayerRecord, Sequence[str]], list[list[object]]]] = {
    "experts": _expert_rows,
    "load": _load_rows,
    "coactivation": _coactivation_rows,
    "labels": _label_rows,
}


def _mean_probs(layer: LayerRecord) -> list[float] | None:
    tokens = float(layer.column("entropy_tokens").sum())
    return _floats(layer.prob_sum / tokens) if tokens else None


def _label_shares(layer: LayerRecord) -> list[list[float]]:
    """Returns, for each label, the share of each expert; nothing if no token had a label."""
    rows = layer.by_label[:-1]
    if not bool(rows.any()):
        return []
    return cast(list[list[float]], (rows / rows.sum(-1, keepdim=True).clamp(min=1e-9)).tolist())


def _companion(layer: LayerRecord, expert: int) -> tuple[int | None, float]:
    """Returns the expert chosen most often beside this one, and by which share of its tokens."""
    beside = layer.coactivation[expert].clone()
    tokens = float(beside[expert])
    beside[expert] = 0
    best = int(beside.argmax())
    if not tokens or not float(beside[best]):
        return None, 0.0
    return best, float(beside[best]) / tokens


def _floats(values: Tensor) -> list[float]:
    return cast(list[float], values.tolist())


def _numbers(values: Tensor) -> list[float]:
    """Returns whole numbers without a decimal point; of Soft MoE labels have sums of weights."""
    return [int(value) if value.is_integer() else value for value in _floats(values)]


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
