"""A fabricated run of MedVLMoE for tests of its report; nothing was trained."""

import json
from html.parser import HTMLParser

import numpy as np
import pandas as pd

from recipes.medvlmoe.report import write_report
from recipes.shared.scores.calibrated import calibrate
from recipes.shared.scores.expert_usage import expert_usage
from recipes.shared.scores.metrics import evaluate_predictions
from recipes.shared.scores.operating_points import operating_points
from recipes.shared.scores.single_label import single_label_scores
from recipes.shared.scores.subgroups import subgroup_scores
from tests.recipes.json_files import write_json

CLASSES = ["Effusion", "Mass <b>", "Hernia"]
HOSTILE = "<script>alert(1)</script> & <img src=http://example.org/x.png>"


class Elements(HTMLParser):
    """Collects the elements of a page and checks that they close in order."""

    VOID = ("meta", "img", "br", "link")

    def __init__(self, text):
        super().__init__()
        self.open, self.seen = [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def calibration_of(probs, labels, task):
    """Logits and labels of a validation and a test split that are alike."""
    logits = np.log(probs.clip(1e-6, 1 - 1e-6))
    if task == "multi-label":
        logits -= np.log1p(-probs.clip(1e-6, 1 - 1e-6))
    elif task == "ordinal-regression":
        above = (1 - probs.cumsum(axis=1)[:, :-1]).clip(1e-6, 1 - 1e-6)
        logits = np.log(above) - np.log1p(-above)
    return (logits, labels), (logits, labels)


def write_run(folder, *, task="multi-label", classes=CLASSES, epochs=3, seed=0):
    """A fabricated run of 40 studies, 4 experts and 2 examples; nothing here was trained."""
    rng = np.random.default_rng(seed)
    folder.mkdir()
    n, c = 40, len(classes)
    if task == "multi-label":
        labels = (rng.random((n, c)) < ([0.5, 0.3, 0.0] * c)[:c]).astype(float)
        probs = np.clip(0.3 * labels + 0.6 * rng.random((n, c)), 0, 1)
        labels[3] = np.nan
    else:
        labels = np.eye(c)[np.arange(n) % c]
        probs = rng.dirichlet(np.ones(c), size=n)
    groups = [f"p{i // 2}" for i in range(n)]
    ids = np.stack([rng.permutation(4)[:2] for _ in range(n)])
    gates = rng.dirichlet(np.ones(2), size=n)
    usage, weights = np.zeros((n, 4)), np.zeros((n, 4))
    np.put_along_axis(usage, ids, 0.5, axis=1)
    np.put_along_axis(weights, ids, gates, axis=1)
    about = {
        "name": "fabricated", "preset": "tiny", "data": "phantom", "task": task, "seed": 0, "classes": classes,
        "parameters": 1_234_567, "device": "cpu", "versions": {"torch": "2.15"}, "text_encoder": None,
        "notes": ["a note of the source"],
    }  # fmt: skip
    metrics = {
        "run": about,
        "test": evaluate_predictions(probs, labels, groups, classes, task=task, bootstrap=20)
        | {"single_label": single_label_scores(probs, labels, groups, classes, task=task, bootstrap=20)},
        "calibration": calibrate(*calibration_of(probs, labels, task), groups, classes, task=task, bootstrap=20)[0],
        "operating_points": operating_points(probs, labels, probs, labels, groups, classes, bootstrap=20),
        "subgroups": subgroup_scores(
            probs,
            labels,
            groups,
            classes,
            {"sex": (["F"] * 20 + ["M"] * 20)[:n], "view": ["AP"] * 30 + ["PA <i>"] * 10},
            bootstrap=20,
        ),
        "experts": expert_usage(usage, weights, labels, classes, top_k=2, entropies=np.full(n, 1.1)),
        "training": {"first_epoch": 1, "epochs": epochs, "best_epoch": epochs, "stopped_early": False},
        "seconds": 75.0,
        "peak_memory_bytes": 2**30,
    }
    write_json(folder / "metrics.json", metrics)
    write_json(folder / "config.json", {"data": {"name": "phantom"}, "seed": 0})
    history = [
        {
            "epoch": e + 1, "train_loss": 1 / (e + 1), "task_loss": 0.9 / (e + 1), "balance_loss": 1.0, "z_loss": 0.1,
            "val_loss": 1.1 / (e + 1), "val_macro_auroc": 0.5 + e / 10, "router_entropy": 1.3,
            "lr_encoder": 1e-5, "lr_head": 1e-4, "seconds": 1.0,
        }
        for e in range(epochs)
    ]  # fmt: skip
    (folder / "history.jsonl").write_text("\n".join(json.dumps(record) for record in history))
    table = {"id": [f"s{i}" for i in range(n)], "group": groups, "split": "test"}
    table |= {f"label:{name}": labels[:, k] for k, name in enumerate(classes)}
    table |= {f"prob:{name}": probs[:, k] for k, name in enumerate(classes)}
    frame = pd.DataFrame(table)
    pd.concat([frame, frame.assign(split="val")]).to_csv(folder / "predictions.csv", index=False)
    attention = rng.random((2, 4, 4)).astype(np.float32)
    box = [{"finding": "Effusion", "x0": 4, "y0": 4, "x1": 12, "y1": 12}]
    np.savez(
        folder / "examples.npz", images=rng.integers(256, size=(2, 32, 32)).astype(np.uint8),
        attention=attention / attention.sum(axis=(1, 2), keepdims=True), probs=probs[2:4], labels=labels[2:4],
        experts=ids[2:4], gates=gates[2:4], ids=np.array(["s2", "s3"]), texts=np.array([HOSTILE, ""]),
        boxes=np.array([json.dumps(box), "[]"]),
    )  # fmt: skip
    return folder


def change_examples(run, **arrays):
    with np.load(run / "examples.npz") as file:
        kept = {key: file[key] for key in file.files} | arrays
    np.savez(run / "examples.npz", **{key: array for key, array in kept.items() if array is not None})


def read(run):
    text = write_report(run).read_text(encoding="utf-8")
    Elements(text)
    return text
