"""Figure 3: which experts the diseases go to, and whether that is more than chance."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from recipes.medvlmoe.config import Config
from recipes.medvlmoe.tables.options import Model, ParseTrain, TableOptions, run_grid
from recipes.medvlmoe.tables.printed import COLUMN, NOTES_3
from recipes.shared.report.formats import DASH, decimals, p_text, percent
from recipes.shared.runs import write_json
from recipes.shared.scores.specialisation import CLAIMED_SHARE, RoutedSplit, expert_specialisation
from recipes.shared.settings import read_settings
from recipes.shared.sweeps.grid import Grid, provenance_lines
from recipes.shared.sweeps.pictures import draw_heat
from recipes.shared.sweeps.tables import markdown_list, markdown_table, write_csv, write_text

METHOD = (
    "A cell is the share that an expert receives of the routed slots of the test studies positive for a disease. One "
    "expert is assigned to each disease on the validation split, so that the shares of the assigned cells (the "
    "diagonal) are largest in sum, and this assignment is scored on the test split. All of it, the assignment too, is "
    "repeated with the label vectors of patients exchanged as a whole, among patients with the same number of studies. "
    "Lift is the share divided by the expert's load: 1 if the disease goes to it as often as any study."
)


def run_figure3(options: TableOptions, permutations: int, size: str, parse: ParseTrain) -> list[dict[str, Any]]:
    """Trains the full model on each data set and writes ``figure3.md``, ``.csv``, ``.json`` and ``.png``.

    Args:
        options: Of the sweep.
        permutations: Of label vectors.
        size: ``"tiny"`` or ``"paper"``.
        parse: Parses options of ``train``.

    Returns:
        The analysis of each run.

    Raises:
        ValueError: If there are no permutations, or a run has no experts.
    """
    if permutations < 1:
        raise ValueError(f"permutations (--permutations) must be at least 1, got {permutations}.")

    def models(base: Config) -> list[Model]:
        return [Model("medvlmoe", "medvlmoe", base.preset, {})]

    grid = run_grid(options, models, size, parse)
    analyses = []
    for data_set in grid.sets:
        for seed, run in grid.runs(data_set, "medvlmoe").items():
            record = grid.records_of(data_set, "medvlmoe").get(seed)
            about: dict[str, Any] = {"data_set": data_set, "seed": seed}
            if record is None or record.state == "failed":
                about["problem"] = "not run" if record is None else f"failed: {record.error}"
            else:
                about |= analyse_run(run, permutations=permutations)
            analyses.append(about)
        if data_set in grid.absent:
            analyses.append({"data_set": data_set, "seed": None, "problem": f"absent: {grid.absent[data_set]}"})
    _write(grid, analyses, permutations, size)
    return analyses


def analyse_run(run: Path, *, permutations: int) -> dict[str, Any]:
    """Tests the specialisation of the experts of an evaluated run.

    Args:
        run: Its folder.
        permutations: Of label vectors.

    Returns:
        As :func:`~recipes.shared.scores.specialisation.expert_specialisation`.

    Raises:
        ValueError: If the run has no experts, or was evaluated by a version that kept no shares of them.
    """
    path = run / "predictions.csv"
    table = pd.read_csv(path, converters={"id": str, "group": str, "split": str})
    usage = [name for name in table if name.startswith("usage:")]
    if not usage:
        raise ValueError(f"{path} has no columns usage:EXPERT: evaluate the run again, if it has experts at all.")
    labels = [name for name in table if name.startswith("label:")]
    splits = {}
    for name in ("val", "test"):
        own = table[table["split"] == name]
        splits[name] = RoutedSplit(
            own[usage].to_numpy(np.float64), own[labels].to_numpy(np.float64), own["group"].tolist()
        )
    classes = [name.removeprefix("label:") for name in labels]
    top_k = read_settings(Config, run).model.top_k
    return expert_specialisation(splits["val"], splits["test"], classes, top_k=top_k, permutations=permutations)


def _write(grid: Grid, analyses: Sequence[Mapping[str, Any]], permutations: int, size: str) -> None:
    folder = grid.place.root
    write_json(folder / "figure3.json", {"figure": "figure3", "size": size, "runs": analyses})
    write_csv(folder / "figure3.csv", [line for one in analyses for line in _csv_rows(one)])
    write_text(folder / "figure3.md", _markdown(grid, analyses, permutations, size))
    panels = [_panel(one) for one in analyses if "problem" not in one]
    subtitle = "share of routed slots; framed: assigned on the validation split; below: load of all test studies"
    draw_heat(folder / "figure3.png", panels, "Experts by disease, test split", subtitle)


def _markdown(grid: Grid, analyses: Sequence[Mapping[str, Any]], permutations: int, size: str) -> str:
    parts = [
        "# Figure 3: experts by disease",
        f"Preset {size}. {METHOD} {permutations:,} permutations.",
        _summary(analyses),
        "![Shares of the experts by disease](figure3.png)",
    ]
    for one in analyses:
        if "problem" not in one:
            parts += [f"## {one['data_set']}, seed {one['seed']}", _limits(one), _diseases(one)]
    parts += ["## What the paper leaves open", markdown_list(NOTES_3)]
    parts += ["## Where these figures come from", markdown_list(provenance_lines(grid))]
    return "\n\n".join(parts) + "\n"


def _summary(analyses: Sequence[Mapping[str, Any]]) -> str:
    titles = ["data set", "seed", "diseases", "mean share on the diagonal", "by chance (95th percentile)", "p"]
    titles += [f"rows above {percent(CLAIMED_SHARE)}", "by chance", "p", COLUMN, "verdict"]
    lines = []
    for one in analyses:
        seed = DASH if one["seed"] is None else str(one["seed"])
        if "problem" in one:
            lines.append([one["data_set"], seed, *[DASH] * 7, f"> {percent(CLAIMED_SHARE)}", one["problem"]])
            continue
        d = one["diagonal"]
        if not d["assigned"]:
            lines.append([one["data_set"], seed, "0", *[DASH] * 6, f"> {percent(CLAIMED_SHARE)}", verdict(one)])
            continue
        null = f"{d['null_mean_share']:.3f} ({d['null_mean_share_95']:.3f})"
        lines.append(
            [one["data_set"], seed, str(d["assigned"]), decimals(d["mean_share"]), null, p_text(d["p_mean_share"]),
             f"{d['above_claim']} of {d['assigned']}", f"{d['null_above_claim']:.1f}", p_text(d["p_above_claim"]),
             f"> {percent(CLAIMED_SHARE)}", verdict(one)]
        )  # fmt: skip
    return markdown_table(titles, lines)


def verdict(one: Mapping[str, Any]) -> str:
    """Says in words whether a run bears the paper's claim out.

    Args:
        one: The analysis of a run.
    """
    d = one["diagonal"]
    if not d["assigned"]:
        return "no disease has positives in both splits"
    if d["p_mean_share"] >= 0.05:
        return "no specialisation beyond chance"
    if d["above_claim"] == d["assigned"]:
        return "specialised, and every assigned disease above the claimed share"
    return f"specialised, but {d['assigned'] - d['above_claim']} of {d['assigned']} below the claimed share"


def _limits(one: Mapping[str, Any]) -> str:
    return (
        f"{one['num_experts']} experts, top {one['top_k']}: no cell can pass {100 * one['highest_share']:.1f}%, "
        f"uniform routing gives {100 * one['uniform_share']:.1f}%. Load of the test split: "
        f"{', '.join(percent(share) for share in one['load'])}. {one['exchangeable_patients']} test patients could be "
        "exchanged."
    )


def _diseases(one: Mapping[str, Any]) -> str:
    titles = ["disease", "positives val / test", "expert", "share", "load", "lift", "p", "p (Holm)", "largest share"]
    lines = []
    for row in one["diseases"]:
        expert = row["expert"]
        load = DASH if expert is None else decimals(one["load"][expert])
        lift = DASH if row["lift"] is None else f"{row['lift']:.2f}"
        largest = DASH
        if row["shares"]:
            top = int(np.argmax(row["shares"]))
            largest = f"{row['shares'][top]:.3f} (E{top})"
        lines.append(
            [row["name"], f"{row['positives_val']} / {row['positives_test']}", DASH if expert is None else f"E{expert}",
             decimals(row["share"]), load, lift, p_text(row["p"]), p_text(row["p_holm"]), largest]
        )  # fmt: skip
    return markdown_table(titles, lines)


def _csv_rows(one: Mapping[str, Any]) -> list[dict[str, Any]]:
    base = {"data_set": one["data_set"], "seed": one["seed"]}
    if "problem" in one:
        return [base | {"problem": one["problem"], COLUMN: f"> {CLAIMED_SHARE}"}]
    lines = []
    for row in one["diseases"]:
        line = base | {key: value for key, value in row.items() if key not in ("name", "shares")}
        line = {"data_set": base["data_set"], "seed": base["seed"], "disease": row["name"]} | line
        line["load"] = None if row["expert"] is None else one["load"][row["expert"]]
        line |= {f"share_E{e}": share for e, share in enumerate(row["shares"] or ())}
        lines.append(line | {COLUMN: f"> {CLAIMED_SHARE}"})
    return lines


def _panel(one: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a heat map whose rows are ordered by their expert, so that assigned cells lie on the diagonal."""
    last = one["num_experts"]
    rows = sorted(one["diseases"], key=lambda row: last if row["expert"] is None else row["expert"])
    cells = [
        {"row": row["name"], "column": f"E{e}", "share": share, "own": e == row["expert"]}
        for row in rows
        if row["shares"]
        for e, share in enumerate(row["shares"])
    ]
    cells += [
        {"row": "all studies", "column": f"E{e}", "share": share, "own": False} for e, share in enumerate(one["load"])
    ]
    d = one["diagonal"]
    words = f", diagonal {percent(d['mean_share'])}, p {p_text(d['p_mean_share'])}" if d["assigned"] else ""
    return {"title": f"{one['data_set']}, seed {one['seed']}{words}", "cells": cells, "top": one["highest_share"]}
