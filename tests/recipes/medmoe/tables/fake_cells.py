"""Cells whose results are drawn instead of computed, as good as the model's name says."""

from pathlib import Path

import numpy as np
import pandas as pd

from recipes.medmoe.tables.cells import WEIGHTS
from recipes.shared.runs import write_json
from recipes.shared.sweeps import Record, SweepFolder
from recipes.shared.sweeps.provenance import file_checksum

CLASSES = ("cyst", "mass", "normal")
STUDIES = 60


def write_predictions(run: Path, share: float, seed: int) -> tuple[float, float]:
    """Writes predictions of two studies of each patient, of which a share is right; returns accuracy and AUROC."""
    truth = np.random.default_rng(0).integers(3, size=STUDIES)  # the same in every run
    right = np.random.default_rng([seed, round(100 * share)]).random(STUDIES) < share
    chosen = np.where(right, truth, (truth + 1) % 3)
    probs = np.full((STUDIES, 3), 0.2)
    probs[np.arange(STUDIES), chosen] = 0.6
    table = {"id": [f"s{i:02d}" for i in range(STUDIES)], "group": [f"p{i // 2}" for i in range(STUDIES)]}
    table |= {"split": ["test"] * STUDIES}
    table |= {f"label:{name}": (truth == c).astype(float) for c, name in enumerate(CLASSES)}
    table |= {f"prob:{name}": probs[:, c] for c, name in enumerate(CLASSES)}
    run.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(table).to_csv(run / "predictions.csv", index=False)
    return float(right.mean()), 0.5


def game(rate: float) -> dict:
    """A pointing game of two findings."""
    one = {
        "hit_rate": rate, "hit_rate_ci95": [rate - 0.1, rate + 0.1], "center_baseline": 0.01, "random_baseline": 0.03,
        "absent_baseline": 0.2, "fixed_baseline": 0.25, "reachable": 0.9, "rounds": 30, "groups": 20,
        "above_center_ci95": [0.1, 0.3], "above_absent_ci95": [0.1, 0.2], "above_fixed_ci95": [-0.1, 0.2],
    }  # fmt: skip
    return one | {
        "per_finding": {"cyst": one, "mass": one | {"hit_rate": 0.0}},
        "several_findings": None,
        "studies": 30,
    }


def fake_sweep(shares, failing=()):
    """Returns a stand-in for ``run_sweep``: ``shares`` are accuracies by model, ``failing`` parts of names of cells."""

    def run_sweep(cells, folder, run_cell, *, files, workers, redo):
        place = SweepFolder(folder)
        for cell in cells:
            kind, *_, model, last = cell.name.split("/")
            values = {"cell": cell.name, "settings": cell.checksum, "seconds": 1.0, "commit": "abc"}
            values["attempt"] = "2" if cell.name in redo else "1"
            place.state(cell.name).mkdir(parents=True, exist_ok=True)
            if any(part in cell.name for part in failing):
                place.write(Record(state="failed", error="ValueError: broken", **values))
                continue
            run, seed = place.run(cell.name), 0 if last == "released" else int(last.removeprefix("seed-"))
            result = _RESULTS[kind](run, shares[model], seed, cell)
            for file in files:
                (run / file).parent.mkdir(parents=True, exist_ok=True)
                if not (run / file).exists():
                    (run / file).write_text(f"{cell.name} {file}")
            if kind != "pretrain" and "pretrained" in cell.settings:
                result["weights"] = file_checksum(place.run(cell.settings["pretrained"]) / WEIGHTS)
            known = {file: file_checksum(run / file) for file in files}
            place.write(Record(state="finished", result=result, files=known, data=f"data of {kind}", **values))
        return place.records(cells)

    return run_sweep


def _pretrain(run, share, seed, cell):
    routing = {"modalities": ["ct", "mri"], "experts": 6, "matrix": [[1, 0, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0]],
               "purity": 1.0, "live_experts": 2}  # fmt: skip
    with_experts = cell.settings["config"]["model"]["local_branch"] == "experts"
    about = {
        "preset": "tiny",
        "local_branch": "experts",
        "route_on": "image",
        "data": "phantom",
        "pairs": {},
        "notes": [],
    }
    about |= {"purity": 1.0 if with_experts else None, "routing": routing if with_experts else None}
    return about | {"epochs": 1, "best_epoch": 0, "parameters": 1000}


def _zero_shot(run, share, seed, cell):
    accuracy, auroc = write_predictions(run, share, seed)
    result = {"accuracy": accuracy, "macro_auroc": auroc, "macro_auroc_ci95": None, "task": "multi-class", "notes": []}
    result |= {
        "studies": STUDIES,
        "groups": STUDIES // 2,
        "classes": list(CLASSES),
        "chance": 1 / 3,
        "majority_share": 0.4,
        "balanced_accuracy": share,
        "prompt_spread": {"subsets": 20, "accuracy": {"mean": share, "sd": 0.01 * seed, "min": 0.0, "max": 1.0}},
        "near_duplicates": {"mode": "count", "in_words": "1 of 60 images"},
    }
    return result | {"prompts": {"file": "mine", "checksum": "0123", "texts": 6}}


def _probe(run, share, seed, cell):
    rows = [
        {
            "fraction": fraction,
            "subsets": [
                {
                    "seed": s,
                    "accuracy": share - 0.01 * s - 0.1 * (fraction < 1),
                    "macro_auroc": 0.7,
                    "train_studies": 6 + s,
                }
                for s in range(cell.settings["subsets"] if fraction < 1 else 1)
            ],
        }
        for fraction in cell.settings["fractions"]
    ]
    run.mkdir(parents=True, exist_ok=True)
    write_json(run / "result.json", {})
    about = {"protocol": "fitted on nothing", "features": "global", "studies": {"test": 40}, "near_duplicates": None}
    return about | {"fractions": rows, "chance": 0.25, "majority_share": 0.3}


def _maps(run, share, seed, cell):
    return game(share / 2)


_RESULTS = {"pretrain": _pretrain, "zero-shot": _zero_shot, "probe": _probe, "maps": _maps}
