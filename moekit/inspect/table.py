"""Figures of all layers as text, as comma-separated values and as scalars for loggers."""

import csv
import io
from collections.abc import Sequence

from moekit.inspect.summary import LayerSummary

_HEADERS = {
    "name": "layer",
    "num_experts": "E",
    "top_k": "K",
    "calls": "calls",
    "tokens": "tokens",
    "max_violation": "max/mean-1",
    "load_entropy": "H(load)",
    "prob_entropy": "H(probs)",
    "confidence": "confidence",
    "dropped": "dropped",
    "dead_experts": "dead",
    "busiest": "busiest",
    "busiest_share": "its share",
}
_PERCENT = frozenset({"dropped", "busiest_share", "unrouted"})
_SCALARS = (
    "max_violation",
    "load_entropy",
    "prob_entropy",
    "confidence",
    "dropped",
    "dead_experts",
    "busiest_share",
    "unrouted",
    "nonfinite_tokens",
)


def text_table(summaries: Sequence[LayerSummary]) -> str:
    """Returns one aligned line for each layer; entropies are over ``ln E``, and - stands for no figure."""
    rows = [[_shown(name, getattr(each, name)) for name in _HEADERS] for each in summaries]
    return aligned([list(_HEADERS.values()), *rows])


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Returns lines of cells as text: the first column to the left, the others to the right."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join(
            text.ljust(width) if column == 0 else text.rjust(width)
            for column, (text, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def csv_table(summaries: Sequence[LayerSummary]) -> str:
    """Returns all figures, empty where there is none."""
    output = io.StringIO()
    writer = csv.writer(output, lineterminator="\n")
    writer.writerow(LayerSummary._fields)
    writer.writerows(summaries)
    return output.getvalue()


def scalars_of(summaries: Sequence[LayerSummary], prefix: str) -> dict[str, float]:
    """Returns ``{prefix + layer/figure: value}`` of the figures that there are."""
    return {
        f"{prefix}{each.name}/{name}": float(value)
        for each in summaries
        for name in _SCALARS
        if (value := getattr(each, name)) is not None
    }


def _shown(name: str, value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{100 * value:.1f} %" if name in _PERCENT else f"{value:.3f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
