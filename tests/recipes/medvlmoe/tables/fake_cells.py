"""Cells whose predictions are drawn instead of trained, as good as the model's name says."""

from pathlib import Path

import numpy as np
import pandas as pd

from recipes.shared.runs import write_json
from recipes.shared.sweeps import Record, SweepFolder
from recipes.shared.sweeps.provenance import file_checksum

CLASSES = ("Mass", "Nodule", "Rare | class")
EXPERTS = 4
STUDIES = 90


def write_predictions(run: Path, *, strength: float, seed: int, planted: bool = True) -> None:
    """Writes a run's predictions for two studies of each patient; ``planted`` sends each class to an expert."""
    draws = np.random.default_rng(0)  # labels are the same in every run
    labels = (draws.random((STUDIES, 3)) < 0.4).astype(float)
    labels[:, 2] = 0
    noise = np.random.default_rng([seed, int(100 * strength)])
    probs = 1 / (1 + np.exp(-(strength * (labels - 0.5) + noise.normal(size=labels.shape))))
    usage = np.full((STUDIES, EXPERTS), 0.25)
    if planted:
        usage = np.where(labels[:, :1] == 1, [[0.5, 0, 0.25, 0.25]], [[0, 0.5, 0.25, 0.25]])
    table = {
        "id": [f"s{i}" for i in range(STUDIES)],
        "group": [f"p{i // 2}" for i in range(STUDIES)],
        "split": ["val" if i < 30 else "test" for i in range(STUDIES)],
    }
    for kind, values in (("label", labels), ("prob", probs)):
        table |= {f"{kind}:{name}": values[:, c] for c, name in enumerate(CLASSES)}
    table |= {f"usage:{e}": usage[:, e] for e in range(EXPERTS)}
    run.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(table).to_csv(run / "predictions.csv", index=False)
    write_json(
        run / "config.json", {"preset": "tiny", "data": {}, "model": {"top_k": 2, "num_experts": EXPERTS}, "train": {}}
    )
    write_json(run / "data.json", {"test": STUDIES})


def fake_sweep(strengths, failing=(), missing=()):
    """Returns a stand-in for ``run_sweep`` that draws each cell by its name's longest key of ``strengths``."""

    def run_sweep(cells, folder, run_cell, *, files, workers, redo):
        place = SweepFolder(folder)
        for cell in cells:
            if any(part in cell.name for part in missing):
                continue
            data_set, model, seed = cell.name.split("/")
            values = {"cell": cell.name, "attempt": "1", "settings": cell.checksum, "seconds": 1.0, "commit": "abc"}
            if any(part in cell.name for part in failing):
                place.state(cell.name).mkdir(parents=True, exist_ok=True)
                place.write(Record(state="failed", error="ValueError: no such class", **values))
                continue
            run = place.run(cell.name)
            write_predictions(run, strength=strengths[model], seed=int(seed.removeprefix("seed-")))
            result = {
                "macro_auroc": _macro(run),
                "macro_auroc_ci95": [0.4, 0.9],
                "undefined_classes": [CLASSES[2]],
                "studies": {"train": 10, "val": 30, "test": 60},
                "classes": list(CLASSES),
                "task": "multi-label",
                "text": True,
                "parameters": 1234,
            }
            place.state(cell.name).mkdir(parents=True, exist_ok=True)
            known = {"predictions.csv": file_checksum(run / "predictions.csv")}
            place.write(Record(state="finished", result=result, files=known, data=data_set, **values))
        return place.records(cells)

    return run_sweep


def _macro(run: Path) -> float:
    from recipes.shared.scores.metrics import auroc

    table = pd.read_csv(run / "predictions.csv")
    test = table[table["split"] == "test"]
    return float(np.mean([auroc(test[f"prob:{name}"], test[f"label:{name}"]) for name in CLASSES[:2]]))
