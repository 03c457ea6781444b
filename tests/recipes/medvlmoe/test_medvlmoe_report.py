import json
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from recipes.medvlmoe.report import write_report
from recipes.shared.scores.expert_usage import expert_usage
from recipes.shared.scores.metrics import evaluate_predictions

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


def write_json(path, value):
    path.write_text(json.dumps(value, allow_nan=False))


def change_json(path, change):
    value = json.loads(path.read_text())
    change(value)
    write_json(path, value)


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
        "test": evaluate_predictions(probs, labels, groups, classes, task=task, bootstrap=20),
        "experts": expert_usage(usage, weights, labels, classes, top_k=2, entropies=np.full(n, 1.1)),
        "training": {"epochs": epochs, "best_epoch": epochs - 1, "stopped_early": False},
        "seconds": 75.0,
        "peak_memory_bytes": 2**30,
    }
    write_json(folder / "metrics.json", metrics)
    write_json(folder / "config.json", {"data": {"name": "phantom"}, "seed": 0})
    history = [
        {
            "epoch": e, "train_loss": 1 / (e + 1), "task_loss": 0.9 / (e + 1), "balance_loss": 1.0, "z_loss": 0.1,
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


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "run")


def test_the_report_shows_the_run_s_figures(run):
    text = read(run)
    test = json.loads((run / "metrics.json").read_text())["test"]
    low, high = test["macro_auroc_ci95"]
    assert f"<dd>{test['macro_auroc']:.3f}<small>95% CI {low:.3f} to {high:.3f}</small>" in text
    assert f"{test['per_class']['Effusion']['average_precision']:.3f}" in text
    assert "best: 0.700 in epoch 2" in text
    assert "maximum ln 4 = 1.39" in text
    assert "1.23 M" in text
    assert "1 min 15 s" in text
    assert "a note of the source" in text
    assert text.count("<article") == 2
    assert "No text came with this study" in text
    assert "Expert E" in text


def test_the_report_is_honest_about_what_it_cannot_say(run):
    text = read(run)
    assert "Phantom data: images and texts are synthetic" in text
    assert "No AUROC for Hernia" in text
    assert "no positive study" in text
    assert "They do not cover the spread between training seeds" in text
    assert "The best epoch is the last one" in text
    assert "? unknown" in text


def test_the_report_is_one_file_that_loads_nothing(run):
    text = read(run)
    for name, attributes in Elements(text).seen:
        assert name not in ("script", "link", "iframe")
        for key in ("src", "href", "xlink:href"):
            assert attributes.get(key, "#").startswith(("#", "data:image/png;base64,"))
    assert not re.search(r"@import|url\((?!#)", text)


def test_texts_and_names_are_escaped(run):
    text = read(run)
    assert "<script" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; &lt;img" in text
    assert "Mass <b>" not in text
    assert "Mass &lt;b&gt;" in text


def test_writing_twice_gives_the_same_file(run):
    assert read(run) == read(run)


def test_a_model_without_experts_or_attention_or_examples(run):
    change_json(run / "metrics.json", lambda value: value.update(experts=None))
    change_examples(run, attention=None, experts=None, gates=None)
    text = read(run)
    assert "This model has no mixture of experts" in text
    assert "Attention" not in text
    assert "Expert E" not in text
    (run / "examples.npz").unlink()
    assert "The run saved no example studies" in read(run)


def test_attention_without_a_place_is_not_drawn(run):
    change_examples(run, attention=np.ones((2, 1, 1), np.float32))
    assert "Attention" not in read(run)


def test_colour_images(run):
    change_examples(run, images=np.full((2, 16, 16, 3), 90, np.uint8))
    assert read(run).count('alt="image of study') == 2


def test_one_epoch(tmp_path):
    text = read(write_run(tmp_path / "run", epochs=1))
    assert "best: 0.500 in epoch 0" in text
    assert "The best epoch is the last one" not in text


def test_quantities_that_were_not_recorded_have_no_chart(run):
    lines = [{"epoch": e, "train_loss": 1.0, "val_macro_auroc": None, "z_loss": None} for e in range(3)]
    (run / "history.jsonl").write_text("\n".join(map(json.dumps, lines)))
    text = read(run)
    assert "Router z-loss" not in text
    assert "<figcaption>Validation macro AUROC" not in text
    assert "<figcaption>Loss" in text


@pytest.mark.parametrize("task", ["multi-class", "binary-class", "ordinal-regression"])
def test_single_label_tasks_show_the_accuracy(tmp_path, task):
    run = write_run(tmp_path / "run", task=task, classes=["a", "b"])
    accuracy = json.loads((run / "metrics.json").read_text())["test"]["accuracy"]
    assert f"<dt>Test accuracy</dt><dd>{accuracy:.3f}" in read(run)


def test_no_class_defined(tmp_path):
    run = write_run(tmp_path / "run", classes=["Hernia"])
    table = pd.read_csv(run / "predictions.csv")
    table["label:Hernia"] = 0.0
    table.to_csv(run / "predictions.csv", index=False)
    nothing = evaluate_predictions(
        np.full((40, 1), 0.5), np.zeros((40, 1)), list("x" * 40), ["Hernia"], task="multi-label", bootstrap=5
    )
    change_json(run / "metrics.json", lambda value: value.update(test=nothing))
    text = read(run)
    assert "<dd>undefined<small>no class has both outcomes</small>" in text
    assert "No class has both positives and negatives" in text


def test_many_classes_are_cut_to_the_present_and_the_likely(tmp_path):
    text = read(write_run(tmp_path / "run", classes=[f"class {i:02d}" for i in range(14)]))
    assert text.count("4 more classes at") == 2


def test_classes_keep_the_run_s_order_whatever_the_order_in_the_file(run):
    def turn(value):
        value["test"]["per_class"] = dict(reversed(value["test"]["per_class"].items()))

    before = read(run)
    change_json(run / "metrics.json", turn)
    assert read(run) == before


@pytest.mark.parametrize("name", ["config.json", "metrics.json", "history.jsonl", "predictions.csv"])
def test_a_missing_file_is_named(run, name):
    (run / name).unlink()
    with pytest.raises(ValueError, match=f"{name}: the file is missing. A report needs the whole folder"):
        write_report(run)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", "{", "config.json: expected JSON, got something else"),
        ("config.json", "[]", "config.json: expected a JSON object, got list"),
        ("metrics.json", "{}", 'metrics.json: the field "run" is missing'),
        ("metrics.json", '{"run": {}, "test": {}}', 'metrics.json: "test" lacks the field "macro_auroc"'),
        ("history.jsonl", "\n", "history.jsonl: expected one line per epoch, got none"),
        ("history.jsonl", '{"epoch": 0}', 'history.jsonl: a line lacks the field "train_loss"'),
        ("predictions.csv", "id,split\n", "predictions.csv: a column is missing"),
        ("predictions.csv", "", "predictions.csv: expected a table of numbers"),
        ("examples.npz", "PK\x03\x04 cut off", "examples.npz: expected arrays saved by numpy.savez"),
        ("examples.npz", "no archive", "examples.npz: expected arrays saved by numpy.savez"),
    ],
)
def test_an_unusable_file_is_named(run, name, content, message):
    (run / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        write_report(run)


def test_files_that_contradict_each_other_are_refused(run):
    change_json(run / "metrics.json", lambda value: value["test"].update(studies=41))
    with pytest.raises(ValueError, match=r"expected the 41 test studies of metrics\.json, got 40"):
        write_report(run)
    change_json(run / "metrics.json", lambda value: value["run"].update(classes=["other"]))
    with pytest.raises(ValueError, match='"run" and "test" must name the same classes'):
        write_report(run)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"texts": None}, r"examples.npz: the arrays \['texts'\] are missing"),
        ({"ids": np.array(["a"])}, "expected 2 studies in every array, got 1 in 'ids'"),
        ({"probs": np.zeros((2, 5))}, r"'probs' must have shape \(2, 3\), got \(2, 5\)"),
        (
            {"images": np.zeros((2, 8, 8))},
            r"examples\.npz: a value is not what a report .*pixels must be uint8",
        ),
        ({"boxes": np.array(["{", ""])}, r"examples\.npz: a value is not what a report expects"),
        ({"boxes": np.array(['[{"finding": "a", "x0": 1}]', ""])}, r"examples\.npz: the field 'y0' is missing"),
        ({"gates": None}, r"examples\.npz: the field 'gates' is missing"),
        ({"attention": np.array([[[-1.0, 3.0]]] * 2)}, r"examples\.npz: .*attention must be finite and not negative"),
    ],
)
def test_examples_that_do_not_fit_are_refused(run, arrays, message):
    change_examples(run, **arrays)
    with pytest.raises(ValueError, match=message):
        write_report(run)


def test_empty_examples_are_no_examples(run):
    with np.load(run / "examples.npz") as file:
        np.savez(run / "none.npz", **{key: file[key][:0] for key in file.files})
    (run / "none.npz").replace(run / "examples.npz")
    assert "The run saved no example studies" in read(run)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(run=[]), r'metrics\.json: "run" must be an object, got list'),
        (lambda m: m.update(test=None), r'metrics\.json: "test" must be an object, got NoneType'),
        (lambda m: m["test"].update(per_class=None), r'metrics\.json: "run" and "test" must name the same classes'),
        (
            lambda m: m["test"]["per_class"]["Effusion"].pop("negatives"),
            r"metrics\.json: the field 'negatives' is missing",
        ),
        (lambda m: m["test"].update(macro_auroc="high"), r"metrics\.json: a value is not what a report expects"),
        (lambda m: m.update(training=[1]), r"metrics\.json: a value is not what a report expects"),
        (lambda m: m["experts"].pop("load"), r"metrics\.json: the field 'load' is missing"),
        (lambda m: m["experts"]["activation"]["matrix"].pop(), r"metrics\.json: a value is not what a report expects"),
        (lambda m: m["run"]["classes"].append({}), r'metrics\.json: "run" and "test" must name the same classes'),
    ],
)
def test_damage_deep_in_the_metrics_names_the_file(run, change, message):
    change_json(run / "metrics.json", change)
    with pytest.raises(ValueError, match=message):
        write_report(run)


def test_a_history_of_words_is_named(run):
    (run / "history.jsonl").write_text('{"epoch": 0, "train_loss": "high"}')
    with pytest.raises(ValueError, match=r"history\.jsonl: a value is not what a report expects \(could not convert"):
        write_report(run)


def test_a_training_that_diverged_is_drawn_up_to_there(run):
    lines = ['{"epoch": 0, "train_loss": 1.5}', '{"epoch": 1, "train_loss": 2.5}', '{"epoch": 2, "train_loss": NaN}']
    (run / "history.jsonl").write_text("\n".join(lines))
    text = read(run)
    assert "<figcaption>Loss" in text
    assert "NaN" not in text[: text.index("Test scores by class")]


def test_hostile_names_of_classes_and_runs_are_escaped_everywhere(tmp_path):
    hostile = """a"b'<script>&"""
    run = write_run(tmp_path / "run", classes=[hostile, "other"])
    change_json(run / "metrics.json", lambda value: value["run"].update(name=hostile, data=hostile, task=hostile))
    change_examples(
        run,
        ids=np.array([hostile, "s3"]),
        boxes=np.array([json.dumps([{"finding": hostile, "x0": 1, "y0": 1, "x1": 2, "y1": 2}]), "[]"]),
    )
    text = read(run)
    assert "<script" not in text
    assert hostile not in text
    shown = [attributes.get("alt") for name, attributes in Elements(text).seen if name == "img"]
    assert f"image of study {hostile}" in shown
    labels = [attributes["aria-label"] for _, attributes in Elements(text).seen if "aria-label" in attributes]
    assert f"ROC curve of {hostile}" in labels
