"""The interactive page of a record: one HTML file that loads nothing else."""

import base64
import gzip
import html
import json
from collections.abc import Mapping, Sequence
from importlib import resources

from moekit.inspect.files import as_json
from moekit.inspect.findings import Finding
from moekit.inspect.layer_record import LayerRecord
from moekit.inspect.summary import LayerSummary, summaries_over_time


def page_of(
    layers: Mapping[str, LayerRecord],
    label_names: Sequence[str],
    summaries: Sequence[LayerSummary],
    findings: Sequence[Finding],
    title: str,
) -> str:
    """Returns the page. The record stands in it compressed; the browser expands and draws it."""
    document = {
        "record": as_json(layers, label_names),
        "summaries": [each._asdict() for each in summaries],
        "over_time": [[_series(each) for each in summaries_over_time(name, layer)] for name, layer in layers.items()],
        "findings": [each._asdict() for each in findings],
    }
    text = json.dumps(document, allow_nan=False, separators=(",", ":"))
    parts = {
        "@@TITLE@@": html.escape(title),
        "@@STYLE@@": _asset("page.css"),
        "@@SCRIPT@@": "\n".join(_asset(name) for name in ("drawing.js", "page.js")),
        "@@DATA@@": base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode(),
    }
    page = _asset("page.html")
    for mark, part in parts.items():
        page = page.replace(mark, part)
    return page


def _series(figures: LayerSummary) -> dict[str, float | None]:
    """Returns what the page draws over time."""
    names = ("calls", "max_violation", "load_entropy", "prob_entropy", "confidence", "dropped")
    return {name: _rounded(getattr(figures, name)) for name in names}


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 5)


def _asset(name: str) -> str:
    return resources.files("moekit.inspect").joinpath("assets", name).read_text(encoding="utf-8")
