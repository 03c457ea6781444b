"""The record of a model: one :class:`LayerRecord` for each layer, labels, and ways to show it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from moekit.checks import check_integer
from moekit.inspect.expert_table import LayerTable, expert_text, layer_csv
from moekit.inspect.files import read_layers, write_layers
from moekit.inspect.findings import Finding, Thresholds, described, findings_of
from moekit.inspect.layer_record import LayerRecord
from moekit.inspect.page import page_of
from moekit.inspect.pictures import layer_picture, overview_picture
from moekit.inspect.summary import LayerSummary, latest_summary, summaries_over_time, summary
from moekit.inspect.table import csv_table, scalars_of, text_table

NO_LABEL = -100


class RoutingRecord:
    """What the layers of a model routed where: made by :func:`record_routing` or :meth:`load`.

    Args:
        layers: Record of each layer by its name.
        label_names: Names of the labels of tokens.

    Raises:
        ValueError: If ``label_names`` repeats a name.

    Attributes:
        layers: Record of each layer by its name, in the order of the model.
        label_names: Names of the labels.

    Example:
        >>> from moekit.inspect import record_routing
        >>> model = nn.ModuleDict({"moe": SparseMoE.ffn(8, 16, num_experts=4, top_k=2)})
        >>> with record_routing(model, label_names=("noun", "verb")) as record:
        ...     record.label(["noun", "verb", "verb"])  # one for each token, or for each sample
        ...     _ = model["moe"](torch.randn(3, 5, 8))
        >>> record.layers["moe"].by_label.sum(-1).tolist()  # the last are tokens without a label
        [10.0, 20.0, 0.0]
    """

    def __init__(self, layers: dict[str, LayerRecord], label_names: Sequence[str] = ()) -> None:
        self.layers = layers
        self.label_names = tuple(label_names)
        self._labels: Tensor | None = None
        if len(set(self.label_names)) != len(self.label_names):
            raise ValueError(f"label_names must differ, got {self.label_names}.")

    def label(self, labels: Int[Tensor, "..."] | Sequence[str | int] | None) -> None:
        """Labels the tokens of the calls that follow, until it is called again.

        Args:
            labels: One for each token, of any shape; or one for each sample, which all its tokens then have: a layer
                gets a multiple of their number. Names or indices of ``label_names``; -100 (by name ``""``) for none.
                ``None`` ends the labelling.

        Raises:
            ValueError: If a label is none of ``label_names``.
        """
        if labels is None:
            self._labels = None
            return
        if not isinstance(labels, Tensor):
            labels = torch.tensor([self._index(each) for each in labels], dtype=torch.int64)
        check_integer("labels", labels)
        flat = labels.detach().reshape(-1).long()
        count = len(self.label_names)
        wrong = ((flat < 0) | (flat >= count)) & (flat != NO_LABEL)
        if bool(wrong.any()):
            raise ValueError(
                f"labels must be indices of the {count} label_names of record_routing, or {NO_LABEL} for none, "
                f"got {int(flat[wrong][0])}."
            )
        self._labels = torch.where(flat == NO_LABEL, count, flat)

    def labels_of(self, layer: str, num_tokens: int) -> Int[Tensor, "T"] | None:
        """Returns the labels of the tokens of a call, or ``None`` where there are none.

        Raises:
            ValueError: If the number of tokens is no multiple of that of the labels.
        """
        if self._labels is None:
            return None
        count = len(self._labels)
        if count == 0 or num_tokens % count:
            raise ValueError(
                f"labels must be one for each token or sample of the call, got {count} labels for the {num_tokens} "
                f"tokens of layer {layer!r}: call record.label() with those of this call, or record.label(None)."
            )
        return self._labels.repeat_interleave(num_tokens // count)

    def merged(self, other: "RoutingRecord", *, parallel: bool = False) -> "RoutingRecord":
        """Returns the record of both, as if one record had been kept; layers are matched by name.

        Args:
            other: Another record.
            parallel: Whether ``other`` was kept at the same time, as by another rank: call ``n`` of both is one point
                in time. By default it was kept afterwards.

        Raises:
            ValueError: If labels, experts or, in parallel, calls do not agree.
        """
        if self.label_names != other.label_names:
            raise ValueError(f"label_names must be those of both, got {self.label_names} and {other.label_names}.")
        layers = dict(self.layers)
        for name, layer in other.layers.items():
            layers[name] = layers[name].merged(layer, parallel=parallel) if name in layers else layer
        return RoutingRecord(layers, self.label_names)

    def summaries(self, *, latest: bool = False) -> list[LayerSummary]:
        """Returns the figures of each layer.

        Args:
            latest: Whether those of the last window of time only, instead of the whole record.
        """
        figures = latest_summary if latest else summary
        return [figures(name, layer) for name, layer in self.layers.items()]

    def findings(self, thresholds: Thresholds | None = None) -> list[Finding]:
        """Returns what is wrong, in words, the worst first.

        Args:
            thresholds: From where something is worth saying.
        """
        return findings_of(self.layers, Thresholds() if thresholds is None else thresholds)

    def table(self, layer: str | None = None) -> str:
        """Returns the figures as text.

        Args:
            layer: Name of a layer, for one line for each of its experts; all layers, one line each, by default.

        Raises:
            ValueError: If there is no such layer.
        """
        if layer is None:
            return text_table(self.summaries())
        return expert_text(self._layer(layer), self.label_names)

    def csv(self, layer: str | None = None, table: LayerTable | None = None) -> str:
        """Returns figures or counts as comma-separated values.

        Args:
            layer: Name of a layer; all layers, one line of figures each, by default.
            table: What of the layer: by default its figures, one line for each window of time. ``"experts"``: slots,
                dropped slots and mean probability of each expert; ``"load"``: slots of each expert by window;
                ``"coactivation"``: tokens that chose both experts, on the diagonal the one; ``"labels"``: slots of
                each label by expert.

        Raises:
            ValueError: If there is no such layer or table, or a table is named without a layer.
        """
        if table is not None:
            if layer is None:
                raise ValueError(
                    f"table={table!r} is of one layer, got layer=None: name one of {', '.join(self.layers)}."
                )
            return layer_csv(self._layer(layer), self.label_names, table)
        return csv_table(self.summaries() if layer is None else self.over_time(layer))

    def over_time(self, layer: str) -> list[LayerSummary]:
        """Returns the figures of a layer for each window of time; ``calls`` is the width of the window.

        Args:
            layer: Its name.

        Raises:
            ValueError: If there is no such layer.
        """
        return summaries_over_time(layer, self._layer(layer))

    def scalars(self, prefix: str = "moe/", *, latest: bool = False) -> dict[str, float]:
        """Returns the figures as ``{"moe/LAYER/FIGURE": value}``, as loggers take them.

        ``writer.add_scalar(name, value, step)`` for each item with TensorBoard, ``wandb.log(scalars)`` with W&B.

        Args:
            prefix: Stands before each name.
            latest: Whether those of the last window of time only.
        """
        return scalars_of(self.summaries(latest=latest), prefix)

    def figure(self, layer: str | None = None) -> Any:
        """Draws the record with matplotlib.

        Args:
            layer: Name of a layer, for its load, time, co-activation and labels; all layers in one by default.

        Returns:
            A ``matplotlib.figure.Figure``; ``.savefig(path)`` writes it.

        Raises:
            ImportError: If matplotlib is not installed.
            ValueError: If there is no such layer.
        """
        if layer is None:
            return overview_picture(self.layers)
        return layer_picture(layer, self._layer(layer), self.label_names)

    def save(self, path: str | Path) -> None:
        """Writes the record: versioned JSON, compressed by gzip."""
        Path(path).write_bytes(write_layers(self.layers, self.label_names))

    @classmethod
    def load(cls, path: str | Path) -> "RoutingRecord":
        """Reads a record. Nothing in the file is executed.

        Raises:
            ValueError: If the file is no record, of a later version, or damaged.
        """
        layers, label_names = read_layers(path)
        return cls(layers, label_names)

    def write_page(self, path: str | Path, *, title: str = "Routing record") -> None:
        """Writes one interactive HTML page, which needs no network and no other file.

        Args:
            path: Where to.
            title: Title of the page.
        """
        page = page_of(self.layers, self.label_names, self.summaries(), self.findings(), title)
        Path(path).write_text(page, encoding="utf-8")

    def __str__(self) -> str:
        """The findings in words, then the table."""
        return f"{described(self.findings())}\n\n{self.table()}"

    def _layer(self, name: str) -> LayerRecord:
        if name not in self.layers:
            raise ValueError(f"layer must be one of {', '.join(self.layers)}, got {name!r}.")
        return self.layers[name]

    def _index(self, label: str | int) -> int:
        if isinstance(label, int):
            return label
        if label == "":
            return NO_LABEL
        if label not in self.label_names:
            raise ValueError(
                f"labels must be among the label_names of record_routing, {self.label_names}, got {label!r}."
            )
        return self.label_names.index(label)
