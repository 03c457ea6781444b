"""Figure 3: word maps of the models on the same studies, hit rates of the findings, and the routing."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from recipes.medmoe.tables.models import trained_models
from recipes.medmoe.tables.pointing import finding_table, pointing_csv, pointing_table
from recipes.medmoe.tables.printed import COLUMN, NOTES_3, OURS
from recipes.medmoe.tables.results import results_of
from recipes.medmoe.tables.sweep import MAPS, Evaluation, ParsePretrain, Swept, run_sweep_of
from recipes.shared.report.files import read_examples
from recipes.shared.report.images import attention_overlay
from recipes.shared.sweeps.grid import provenance_lines
from recipes.shared.sweeps.options import SweepOptions
from recipes.shared.sweeps.pictures import draw_heat
from recipes.shared.sweeps.tables import markdown_list, write_csv, write_text

_NEEDED = ("images", "ids", "modalities", "boxes", "words", "word_maps", "hits")


class Example(NamedTuple):
    """A study as one model sees it.

    Attributes:
        image: The fitted image.
        modality: Its kind.
        word: The first finding's name, or the most peaked word.
        word_map: Its map.
        hit: Of the pointing game, NaN where it was not played.
        boxes: Boxes of the finding, as the model's square has them.
    """

    image: NDArray[np.uint8]
    modality: str
    word: str
    word_map: NDArray[np.float32]
    hit: float
    boxes: list[dict[str, Any]]


def run_figure3(options: SweepOptions, models: Sequence[str], size: str, parse: ParsePretrain) -> Swept:
    """Pretrains the models, plays the pointing game, and keeps the maps of some studies; cells are those of Table 1.

    Args:
        options: Of the sweep.
        models: Names of the models to pretrain.
        size: ``"tiny"`` or ``"release"``.
        parse: Parses options of ``pretrain``.
    """
    evaluations = [Evaluation("maps", MAPS, {"bootstrap": options.bootstrap})]
    return run_sweep_of(options, trained_models(models, size), evaluations, parse)


def write_figure3(swept: Swept, size: str) -> list[str]:
    """Writes ``figure3.md``, ``figure3.csv``, ``figure3.png`` (maps) and ``figure3-routing.png``.

    Args:
        swept: The cells.
        size: Of the presets.

    Returns:
        Names of the files.
    """
    folder = swept.evaluated.place.root
    examples = _examples(swept)
    if examples:
        _draw_maps(folder / "figure3.png", examples)
    panels = [panel for panel in _routing_panels(swept) if panel["cells"]]
    subtitle = "share of the test images of each modality at each expert; framed: the expert meant for it"
    draw_heat(folder / "figure3-routing.png", panels, "Modality by expert, test split", subtitle)
    write_csv(folder / "figure3.csv", pointing_csv(swept))
    shown = ", ".join(examples)
    maps = (
        f"![Word maps of {shown} on the same studies](figure3.png)\n\nThe same studies for all models, the first that "
        "show every modality and finding about equally often; maps of the first seed. A cross is a map's highest cell."
        if examples
        else "No maps are finished."
    )
    parts = [
        "# Figure 3: word maps by model",
        f"Presets of size {size}, pretrained on {swept.data}. Of the paper's figure there is nothing to put into a "
        f'column "{COLUMN}": it is a picture without numbers.',
        maps,
        "## Hit rates",
        pointing_table(swept),
        "## By finding",
        finding_table(swept),
        "## Routing",
        "![Share of the images of each modality at each expert](figure3-routing.png)",
        "## What the paper leaves open",
        markdown_list(NOTES_3),
        "## Where these figures come from",
        markdown_list(provenance_lines(swept.all_cells)),
    ]
    write_text(folder / "figure3.md", "\n\n".join(parts) + "\n")
    return ["figure3.md", "figure3.csv", *(["figure3.png"] if examples else []), "figure3-routing.png"]


def _examples(swept: Swept) -> dict[str, list[Example]]:
    """Reads the maps of the first finished seed of each model; of studies that all have."""
    arrays: dict[str, dict[str, NDArray[Any]]] = {}
    for model in swept.models:
        for seed in results_of(swept, MAPS, model.name):
            run = swept.evaluated.runs(MAPS, model.name)[seed]
            kept = read_examples(run / "explain" / "examples.npz", _NEEDED, common=("expert_names",))
            if kept is not None:
                arrays.setdefault(model.name, kept)
    common = set.intersection(*(set(map(str, one["ids"])) for one in arrays.values())) if arrays else set()
    return {
        name: [_example(kept, row) for row, study in enumerate(map(str, kept["ids"])) if study in common]
        for name, kept in arrays.items()
        if common
    }


def _example(kept: Mapping[str, NDArray[Any]], row: int) -> Example:
    boxes = json.loads(str(kept["boxes"][row]) or "[]")
    words = list(map(str, kept["words"][row]))
    place = next((i for i, word in enumerate(words) if any(box["finding"] == word for box in boxes)), 0)
    own = [box for box in boxes if box["finding"] == words[place]]
    values = kept["word_maps"][row][place]
    hit = float(kept["hits"][row][place])
    return Example(kept["images"][row], str(kept["modalities"][row]), words[place], values, hit, own)


def _draw_maps(path: Path, examples: Mapping[str, Sequence[Example]]) -> None:
    """Draws a row per study: the image with its box, then each model's map."""
    studies = len(next(iter(examples.values())))
    figure = Figure(figsize=(1.7 * (len(examples) + 1), 1.85 * studies + 0.4), layout="constrained")
    grid = figure.subplots(studies, len(examples) + 1, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for row in range(studies):
        first = next(iter(examples.values()))[row]
        _panel(grid[row, 0], first, f"{first.modality}: {first.word}", with_map=False)
        for axes, (name, own) in zip(grid[row, 1:], examples.items(), strict=True):
            hit = own[row].hit
            outcome = "" if np.isnan(hit) else ", hit" if hit == 1 else ", miss" if hit == 0 else f", {hit:.0%}"
            _panel(axes, own[row], f"{name}{outcome}", with_map=True)
    part = path.with_name(f"{path.stem}.part.png")
    figure.savefig(part, dpi=110)
    part.replace(path)


def _panel(axes: Any, one: Example, title: str, *, with_map: bool) -> None:
    side = one.image.shape[0]
    extent = (0, side, side, 0)
    axes.imshow(one.image, cmap="gray", vmin=0, vmax=255, extent=extent)
    if with_map:
        axes.imshow(attention_overlay(one.word_map), extent=extent, interpolation="bilinear")
        row, column = np.unravel_index(int(one.word_map.argmax()), one.word_map.shape)
        height, width = one.word_map.shape
        axes.plot((column + 0.5) * side / width, (row + 0.5) * side / height, "+", color="#00e5ff", markersize=9)
    for box in one.boxes:
        corner, size = (box["x0"], box["y0"]), (box["x1"] - box["x0"], box["y1"] - box["y0"])
        axes.add_patch(Rectangle(corner, *size, fill=False, edgecolor="#ffd24a", linewidth=1.2))
    axes.set_title(title, fontsize=8)


def _routing_panels(swept: Swept) -> list[dict[str, Any]]:
    panels = []
    for (_, model, seed), cell in swept.pretrained.cells.items():
        record = swept.pretrained.records.get(cell.name)
        routing = record.result.get("routing") if record is not None and record.state == "finished" else None
        if model != OURS or routing is None:
            continue
        cells = [
            {"row": name, "column": f"E{e}", "share": share, "own": e == place}
            for place, (name, shares) in enumerate(zip(routing["modalities"], routing["matrix"], strict=True))
            for e, share in enumerate(shares)
        ]
        purity = "" if routing["purity"] is None else f", purity {routing['purity']:.3f}"
        panels.append({"title": f"{model}, seed {seed}{purity}", "cells": cells, "top": 1.0})
    return panels
