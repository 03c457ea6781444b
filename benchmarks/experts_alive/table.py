"""The page of `python -m benchmarks experts-alive`."""

from collections.abc import Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

from benchmarks.experts_alive.sets import METHODS, SETS

TITLES = {"switch": "Switch loss, 0.01 (before)", "fitted": "fitted bias (default)"}

_HEAD = """# Experts that live

The preset `tiny` of MedVLMoE on three small real sets, with a Switch loss and with a selection bias that is fitted to
recent decisions. An expert *lives* if at least 1/32 of the slots (a quarter of an equal share; 8 experts, top 2) are
its own in eval mode, with the weights that the training keeps. Written by `python -m benchmarks experts-alive`.

"""


def write_page(lines: Sequence[dict[str, Any]], path: Path) -> None:
    """Writes the page.

    Args:
        lines: Figures of the runs, and the comparison of each set.
        path: Where to.
    """
    runs = [line for line in lines if "method" in line]
    about = runs[0]["environment"]
    seeds = sorted({run["seed"] for run in runs})
    names = [name for name in SETS if any(run["set"] == name for run in runs)]
    text = _HEAD
    text += f"{about['device']}; torch {about['versions']['torch']}; commit {about['commit']}, "
    text += f"{about['date']}; seeds {', '.join(map(str, seeds))}.\n\n"
    text += "".join(
        f"- {SETS[name].title}: `--image-size {SETS[name].image_size} --epochs {SETS[name].epochs}`\n" for name in names
    )
    text += "\n" + _summary(runs, names)
    text += "\n" + _comparison([line for line in lines if "comparison" in line])
    text += "\n## Every run\n\n" + _each(runs)
    path.write_text(text)


def _summary(runs: Sequence[dict[str, Any]], names: Sequence[str]) -> str:
    rows = [
        "| set | balance | live, train: median (least) | live, val + test: median (least) | entropy of the load, val + "
        "test | entropy of a study's probabilities | information, val + test (95 % of null) | seeds above null | AUROC "
        "|",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name in names:
        for method in METHODS:
            of = [run for run in runs if (run["set"], run["method"]) == (name, method)]
            cells = [SETS[name].title, TITLES[method]]
            for split in ("train", "val_and_test"):
                live = [run[split]["live_experts"] for run in of]
                cells.append(f"{median(live):g} ({min(live)})")
            information = [run["val_and_test"]["information"] for run in of]
            above = sum(each["nats"] > each["null_95"] for each in information)
            nats, null = (mean(each[key] for each in information) for key in ("nats", "null_95"))
            cells += [
                f"{mean(run['val_and_test']['load_entropy'] for run in of):.2f}",
                f"{mean(run['router_entropy'] for run in of):.2f}",
                f"{nats:.3f} ({null:.3f})",
                f"{above} of {len(of)}",
                f"{mean(run['macro_auroc'] for run in of):.3f}",
            ]
            rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n\nBoth entropies are in nats, ln 8 = 2.08 at most.\n"


def _comparison(lines: Sequence[dict[str, Any]]) -> str:
    rows = [
        "Test AUROC with the fitted bias less that with the loss, a mean over seeds; paired bootstrap over the test "
        "patients; not inferior if the interval's lower end is at least -0.02:\n",
        "| set | patients in test | difference | 95 % interval | |",
        "|---|---:|---:|---:|---|",
    ]
    for line in lines:
        value = line["comparison"]
        low, high = value["ci95"]
        rows.append(
            f"| {SETS[line['set']].title} | {value['patients']} | {value['difference']:+.3f} | "
            f"{low:+.3f} to {high:+.3f} | {value['verdict']} |"
        )
    return "\n".join(rows) + "\n"


def _each(runs: Sequence[dict[str, Any]]) -> str:
    rows = ["| set | balance | seed | epoch kept | load, train (%) | load, val + test (%) | AUROC |"]
    rows.append("|---|---|---:|---:|---|---|---:|")
    for run in runs:
        loads = [" ".join(f"{100 * each:.0f}" for each in run[split]["load"]) for split in ("train", "val_and_test")]
        rows.append(
            f"| {SETS[run['set']].title} | {run['method']} | {run['seed']} | {run['best_epoch']} | {loads[0]} | "
            f"{loads[1]} | {run['macro_auroc']:.3f} |"
        )
    return "\n".join(rows) + "\n"
