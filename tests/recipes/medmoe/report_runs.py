"""A fabricated run of MedMoE with the result of every stage, for tests of its report; nothing was trained."""

import json
import re

import numpy as np

from recipes.medmoe.explain.pointing import Pointing, summarise
from recipes.medmoe.report import write_report
from recipes.medmoe.segment.regions import Overlap
from recipes.medmoe.segment.regions import summarise as summarise_regions
from recipes.shared.scores.confusion import confusion_matrix
from recipes.shared.scores.metrics import evaluate_predictions
from recipes.shared.scores.retrieval import retrieval_scores
from recipes.shared.scores.seeds import summary_over_seeds
from tests.recipes.json_files import write_json

HOSTILE = "<script>alert(1)</script> & <img src=http://example.org/x.png>"
CLASSES = ["normal", "lung <nodule>", "effusion"]


def zero_shot_result(rng, name, task):
    labels = np.eye(3)[np.arange(30) % 3]
    probs = rng.dirichlet(np.ones(3), size=30)
    groups = [f"p{i // 2}" for i in range(30)]
    single = task != "multi-label"
    result = {"set": name, "task": task, "split": "test", "modality": "xray", "scoring": "mean", "route_on": "image"}
    result |= evaluate_predictions(probs, labels, groups, CLASSES, task=task, bootstrap=20)
    confusion = confusion_matrix(probs, labels, CLASSES) if single else None
    result |= {"accuracy": result.get("accuracy"), "confusion": confusion, "chance": 1 / 3 if single else None}
    result |= {"balanced_accuracy": 0.345, "majority_share": 0.4} if single else {}
    result |= {"unknown_words": {"share": 0.25}} if single else {}
    spread = {"mean": 0.41, "sd": 0.03, "min": 0.36, "max": 0.47}
    result |= {"prompt_spread": {"subsets": 20, "accuracy": spread, "macro_auroc": None} if single else None}
    result |= {"near_duplicates": {"in_words": f"of 30 images 2 are equal <{HOSTILE}>"} if single else None}
    return result


def zero_shot_section(results):
    keys = ("task", "split", "modality", "scoring", "route_on", "accuracy", "accuracy_ci95", "macro_auroc", "chance")
    more = ("studies", "balanced_accuracy", "majority_share", "unknown_words", "prompt_spread", "near_duplicates")
    sets = {one["set"]: {k: one[k] for k in (*keys, *more) if k in one} for one in results}
    single = [one for one in results if one["accuracy"] is not None]
    return {
        "accuracy": float(np.mean([one["accuracy"] for one in single])) if single else None,
        "chance": 1 / 3 if single else None,
        "macro_auroc": float(np.mean([one["macro_auroc"] for one in results])),
        "mean_over": list(sets),
        "scoring": "mean",
        "route_on": "image",
        "sets": sets,
    }


def few_shot_result():
    def scores(first):
        values = (first, first + 0.02)
        whole = {name: summary_over_seeds(values) for name in ("accuracy", "balanced_accuracy")}
        return whole | {"macro_auroc": summary_over_seeds((None, None))}

    return {
        "task": "multi-class", "chance": 1 / 3, "majority_share": 0.4, "studies": {"train": 60, "test": 30},
        "seeds": [0, 1], "zero_shot": {"accuracy": 0.51, "balanced_accuracy": 0.52, "macro_auroc": 0.53},
        "results": [
            {"method": method, "shots": shots, "studies": [3 * shots] * 2, **scores(first)}
            for method, shots, first in (("prototypes", 1, 0.5), ("prototypes", 4, 0.6), ("tip-adapter", 4, 0.7))
        ],
        "near_duplicates": {"in_words": "none of 30 images is equal or nearly equal"},
    }  # fmt: skip


def segmentation_result():
    overlaps = [Overlap(0.25, 0.4, 0.1, 0.2), Overlap(0.5, 0.6, 0.1, 0.2), Overlap(0.1, 0.2, 0.3, 0.4)]
    scores = summarise_regions(["effusion", "effusion", "nodule"], ["a", "b", "c"], overlaps, bootstrap=20)
    return scores | {"threshold": 0.55, "threshold_by": "Dice on val", "split": "test", "checkpoint": "best"}


def examples():
    rng = np.random.default_rng(1)
    maps = rng.random((2, 2, 6, 6)).astype(np.float32)
    weights = rng.dirichlet(np.ones(4), size=(2, 6, 6)).transpose(0, 3, 1, 2).astype(np.float32)
    box = [{"finding": "effusion", "x0": 4, "y0": 4, "x1": 12, "y1": 12}]
    return {
        "images": rng.integers(256, size=(2, 48, 48)).astype(np.uint8),
        "ids": np.array(["s1", "s2"]),
        "texts": np.array([HOSTILE, "Effusion at the base."]),
        "modalities": np.array(["", "xray"]),
        "boxes": np.array(["[]", json.dumps(box)]),
        "words": np.array([["base", ""], ["effusion", "base"]]),
        "word_maps": maps / maps.sum((2, 3), keepdims=True),
        "hits": np.array([[np.nan, np.nan], [1.0, np.nan]], np.float32),
        "scale_weights": weights,
        "expert_probs": np.array([[0.25, 0.7, 0.05], [0.9, 0.06, 0.04]], np.float32),
        "expert": np.array([1, 0]),
        "expert_names": np.array(["xray", "ct", "expert 2"]),
    }


def write_run(folder, epochs=3):
    """A fabricated run with the result of every stage; nothing here was trained."""
    rng = np.random.default_rng(0)
    (folder / "zero_shot").mkdir(parents=True)
    (folder / "explain").mkdir()
    rounds = [Pointing("effusion", f"p{i}", float(i % 3 == 0), float(i % 5 == 0), 0.1) for i in range(15)]
    rounds += [Pointing("nodule", f"q{i}", 1.0, 0.0, 0.02) for i in range(4)]
    results = [zero_shot_result(rng, "first set", "multi-class"), zero_shot_result(rng, "second", "multi-label")]
    for one in results:
        write_json(folder / "zero_shot" / f"{one['set']}.json", one)
    spread = {"mean": 0.61, "sd": 0.02, "values": [0.6, 0.62]}
    whole = {"mean": 0.83, "sd": None, "values": [0.83]}
    metrics = {
        "run": {
            "name": "fabricated", "preset": "tiny", "data": "phantom-modalities", "seed": 0, "route_on": "image",
            "modalities": ["xray", "ct"], "parameters": 1_234_567, "pairs": {"train": 40, "val": 8, "test": 30},
            "notes": ["a note of the source"],
        },
        "training": {
            "first_epoch": 1, "epochs": epochs, "best_epoch": epochs, "seconds": 75.0, "peak_memory_bytes": 2**30,
        },
        "routing_purity": 0.95,
        "routing": {
            "modalities": ["ct", "xray"], "experts": 3, "matrix": [[0.0, 1.0, 0.0], [0.9, 0.1, 0.0]],
            "counts": [10, 20],
            "accuracy": 0.93, "purity": 0.95, "purity_is": "best match", "confidence": 0.87, "by": "image",
            "load": [0.6, 0.4, 0.0], "load_entropy": 0.673, "max_violation": 0.8, "live_experts": 2,
            "live_expected": 2, "warning": None,
        },
        "zero_shot": zero_shot_section(results),
        "probe": {
            "first set": {
                "task": "multi-class", "features": "global", "chance": 1 / 3, "studies": {"test": 30},
                "protocol": "fitted on the share of training alone, weight decay chosen on 8 validation studies",
                "fractions": [
                    {"fraction": 0.1, "accuracy": spread, "macro_auroc": spread, "kappa": spread, "subsets": 2},
                    {"fraction": 1.0, "accuracy": whole, "macro_auroc": whole, "kappa": whole, "subsets": 1},
                ],
            }
        },
        "retrieval": {"split": "test", "score": "global+local", "images": 30, "texts": 20}
        | retrieval_scores(rng.random((30, 20)), np.arange(30) % 20),
        "few_shot": {"first set": few_shot_result()},
        "segmentation": segmentation_result(),
        "pointing_game": summarise(rounds, bootstrap=30)
        | {"studies": 17, "left_out": 2, "rounds_left_out": 3, "split": "test", "tolerance": 0.0,
            "words": "How it is."},
    }  # fmt: skip
    write_json(folder / "metrics.json", metrics)
    write_json(folder / "config.json", {"data": {"data": "phantom"}, "seeds": [0]})
    lines = [
        {
            "epoch": e + 1, "train_loss": 3 / (e + 1), "global_loss": 2 / (e + 1), "local_loss": 1 / (e + 1),
            "router_loss": 0.5, "balance_loss": 0.0, "val_loss": 3.5 / (e + 1), "val_global_loss": 2.0,
            "val_local_loss": 1.0, "val_router_loss": 0.4, "routing_accuracy": 0.5, "val_routing_accuracy": None,
            "router_entropy": 0.7, "lr": 1e-3, "skipped": 0, "seconds": 1.0,
        }
        for e in range(epochs)
    ]  # fmt: skip
    (folder / "history.jsonl").write_text("\n".join(map(json.dumps, lines)))
    np.savez(folder / "explain" / "examples.npz", **examples())
    return folder


def read(run):
    return write_report(run).read_text(encoding="utf-8")


def table_row(text, title):
    """The cells of the first row with this title, without the drawings inside."""
    row = re.search(rf"<tr[^>]*><th[^>]*>{re.escape(title)}</th>(.*?)</tr>", text, re.DOTALL)
    assert row is not None, title
    cells = re.findall(r"<td[^>]*>(.*?)</td>", row.group(1), re.DOTALL)
    return [re.sub(r"<svg.*?</svg>", "", cell) for cell in cells]
