import json
import re

import numpy as np
import pytest

from recipes.medmoe.explain.pointing import Pointing, summarise
from recipes.medmoe.report import write_report
from recipes.shared.scores.confusion import confusion_matrix
from recipes.shared.scores.metrics import evaluate_predictions
from recipes.shared.scores.retrieval import retrieval_scores

HOSTILE = "<script>alert(1)</script> & <img src=http://example.org/x.png>"
CLASSES = ["normal", "lung <nodule>", "effusion"]


def write_json(path, value):
    path.write_text(json.dumps(value, allow_nan=False))


def change_json(path, change):
    value = json.loads(path.read_text())
    change(value)
    write_json(path, value)


def zero_shot_result(rng, name, task):
    labels = np.eye(3)[np.arange(30) % 3]
    probs = rng.dirichlet(np.ones(3), size=30)
    groups = [f"p{i // 2}" for i in range(30)]
    single = task != "multi-label"
    result = {"set": name, "task": task, "split": "test", "modality": "xray", "scoring": "mean", "route_on": "image"}
    result |= evaluate_predictions(probs, labels, groups, CLASSES, task=task, bootstrap=20)
    confusion = confusion_matrix(probs, labels, CLASSES) if single else None
    result |= {"accuracy": result.get("accuracy"), "confusion": confusion, "chance": 1 / 3 if single else None}
    return result


def zero_shot_section(results):
    keys = ("task", "split", "modality", "scoring", "route_on", "accuracy", "accuracy_ci95", "macro_auroc", "chance")
    sets = {one["set"]: {k: one[k] for k in (*keys, "studies") if k in one} for one in results}
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
        "training": {"epochs": epochs, "best_epoch": epochs - 1, "seconds": 75.0, "peak_memory_bytes": 2**30},
        "routing_purity": 0.95,
        "routing": {
            "modalities": ["ct", "xray"], "experts": 3, "matrix": [[0.0, 1.0, 0.0], [0.9, 0.1, 0.0]],
            "counts": [10, 20],
            "accuracy": 0.93, "purity": 0.95, "purity_is": "best match", "confidence": 0.87, "by": "image",
        },
        "zero_shot": zero_shot_section(results),
        "probe": {
            "first set": {
                "task": "multi-class", "features": "global", "chance": 1 / 3, "studies": {"test": 30},
                "fractions": [
                    {"fraction": 0.1, "accuracy": spread, "macro_auroc": spread, "subsets": 2},
                    {"fraction": 1.0, "accuracy": whole, "macro_auroc": whole, "subsets": 1},
                ],
            }
        },
        "retrieval": {"split": "test", "score": "global+local", "images": 30, "texts": 20}
        | retrieval_scores(rng.random((30, 20)), np.arange(30) % 20),
        "pointing_game": summarise(rounds, bootstrap=30)
        | {"studies": 17, "left_out": 2, "rounds_left_out": 3, "split": "test", "tolerance": 0.0,
            "words": "How it is."},
    }  # fmt: skip
    write_json(folder / "metrics.json", metrics)
    write_json(folder / "config.json", {"data": {"data": "phantom"}, "seeds": [0]})
    lines = [
        {
            "epoch": e, "train_loss": 3 / (e + 1), "global_loss": 2 / (e + 1), "local_loss": 1 / (e + 1),
            "router_loss": 0.5, "balance_loss": 0.0, "val_loss": 3.5 / (e + 1), "val_global_loss": 2.0,
            "val_local_loss": 1.0, "val_router_loss": 0.4, "routing_accuracy": 0.5, "val_routing_accuracy": None,
            "router_entropy": 0.7, "lr": 1e-3, "skipped": 0, "seconds": 1.0,
        }
        for e in range(epochs)
    ]  # fmt: skip
    (folder / "history.jsonl").write_text("\n".join(map(json.dumps, lines)))
    np.savez(folder / "explain" / "examples.npz", **examples())
    return folder


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "run")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A run and its report, which tests only read."""
    run = write_run(tmp_path_factory.mktemp("written") / "run")
    return run, read(run)


def read(run):
    return write_report(run).read_text(encoding="utf-8")


def table_row(text, title):
    """The cells of the first row with this title, without the drawings inside."""
    row = re.search(rf"<tr[^>]*><th[^>]*>{re.escape(title)}</th>(.*?)</tr>", text, re.DOTALL)
    assert row is not None, title
    cells = re.findall(r"<td[^>]*>(.*?)</td>", row.group(1), re.DOTALL)
    return [re.sub(r"<svg.*?</svg>", "", cell) for cell in cells]


def test_the_headline_comes_from_the_files(written):
    run, text = written
    metrics = json.loads((run / "metrics.json").read_text())
    found, game, retrieval = (metrics[key] for key in ("zero_shot", "pointing_game", "retrieval"))
    assert f"<dd>{found['accuracy']:.3f}<small>chance 0.333, mean of 2 sets</small>" in text
    assert "<dt>Routing purity</dt><dd>0.950<small>30 test images</small>" in text
    hit, center = game["hit_rate"], game["center_baseline"]
    assert f"<dt>Pointing game</dt><dd>{hit:.3f}<small>centre baseline {center:.3f}</small>" in text
    way = retrieval["image_to_text"]
    assert f"<dt>Retrieval R@1</dt><dd>{way['recall']['1']:.3f}<small>report for an image, chance 0.050" in text
    assert "<dd>3<small>best: epoch 2</small>" in text


def test_every_table_shows_the_files_figures(written):
    run, text = written
    metrics = json.loads((run / "metrics.json").read_text())
    first = metrics["zero_shot"]["sets"]["first set"]
    cells = table_row(text, "first set")
    low, high = first["accuracy_ci95"]
    assert cells[:2] == [f"{first['accuracy']:.3f}", f"{low:.3f} to {high:.3f}"]
    assert (cells[3], cells[4], cells[-2:]) == ("0.333", f"{first['macro_auroc']:.3f}", ["30", "mean"])
    assert table_row(text, "second")[0] == "–"
    assert table_row(text[text.index("Linear probe") :], "first set")[1:4] == ["0.610 ± 0.020 (2)", "0.830", "0.333"]
    back = metrics["retrieval"]["text_to_image"]
    assert table_row(text, "Image for a report") == [
        *[f"{back['recall'][k]:.3f}" for k in ("1", "5", "10")],
        f"{back['median_rank']:.1f}".removesuffix(".0"), "20", "30",
    ]  # fmt: skip
    nodule = table_row(text, "nodule")
    assert (nodule[0], nodule[3:]) == ("1.000", ["0.000", "0.020", "1.000", "4"])
    assert table_row(text, "Mean of 2 sets")[0] == f"{metrics['zero_shot']['accuracy']:.3f}"
    assert "17 test studies played; 2 with boxes left out, and 3 findings" in " ".join(text.split())


def test_confusion_shows_counts_and_the_share_of_the_row(written):
    run, text = written
    confusion = json.loads((run / "zero_shot" / "first set.json").read_text())["confusion"]
    part = text[text.index("Zero-shot confusion") :]
    assert "first set: 30 test studies, scoring mean" in part
    for name, counts in zip(["normal", "lung &lt;nodule&gt;", "effusion"], confusion["matrix"], strict=True):
        assert table_row(part, name) == [str(count) for count in counts]
    top = max(confusion["matrix"][0])
    assert f"--a:{top / 10:.2f}" in part
    assert "second:" not in part


def test_routing_shows_shares_and_the_load_over_all_images(written):
    _, text = written
    part = " ".join(text[text.index("Routing: modality by expert") :].split())
    assert "E1 <small>ct</small>" in part
    assert "E2 <small>spare</small>" in part
    assert table_row(part, "All images") == ["60%", "40%", "0%"]
    assert "chosen by the image" in part
    assert "Purity 0.950 (best match). Accuracy 0.930" in part


def test_curves_are_drawn_for_what_was_recorded(written):
    _, text = written
    assert "best: 1.167 in epoch 2" in text
    assert "maximum: ln 3" in text
    assert "<figcaption>Local contrastive loss" in text
    assert "Load-balancing loss" not in text


def test_examples_show_maps_scales_and_the_chosen_expert(written):
    _, text = written
    assert text.count("<article") == 2
    assert text.count('alt="map of ') == 3
    assert "effusion: hit" in text
    assert "β of scale 4, mean" in text
    part = text[text.rindex("<article") :]
    assert table_row(part, "E0 xray")[1:] == ["0.90", "● chosen"]
    assert table_row(part, "E2 expert 2")[1:] == ["0.04", ""]


def test_the_report_says_what_a_reader_must_know(written):
    _, text = written
    assert "Phantom data: images and texts are synthetic" in text
    assert "a note of the source" in text
    assert "Pointing game played less than 10 times: nodule" in text
    assert "The best epoch is the last one" in text
    assert "For research only" in text


def test_the_page_is_safe_whole_and_loads_nothing(written):
    run, text = written
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    assert not re.search(r'(src|href)="(?!#|data:image/png;base64,)', text)
    assert text == read(run)


def test_stages_that_were_not_run_are_named(run):
    def strip(metrics):
        for key in ("zero_shot", "probe", "retrieval", "pointing_game", "training"):
            del metrics[key]
        metrics["routing"] |= {"modalities": [], "matrix": [], "counts": [], "accuracy": None}
        metrics["routing_purity"] = None
        metrics["run"]["data"] = "openi"

    change_json(run / "metrics.json", strip)
    for path in (run / "zero_shot").iterdir():
        path.unlink()
    (run / "explain" / "examples.npz").unlink()
    text = read(run)
    for stage in ("zero-shot", "probe", "retrieve", "explain"):
        assert f"The stage {stage} was not run." in text
    assert "No test image has a known modality" in text
    assert "Zero-shot confusion" not in text
    assert "Phantom data" not in text
    assert text.count("<small>not run</small>") == 3


def test_a_pointing_game_that_could_not_be_played_gives_its_reason(run):
    change_json(
        run / "metrics.json",
        lambda m: m["pointing_game"].update(hit_rate=None, per_finding={}, reason="the data hold no boxes"),
    )
    text = read(run)
    assert "Not played: the data hold no boxes." in text
    assert "<small>not played</small>" in text


def test_sets_without_single_labels_show_the_auroc(run):
    def multi(metrics):
        metrics["zero_shot"] |= {"accuracy": None, "chance": None}

    change_json(run / "metrics.json", multi)
    assert "<dt>Zero-shot macro AUROC</dt>" in read(run)


@pytest.mark.parametrize("name", ["config.json", "metrics.json", "history.jsonl"])
def test_a_missing_file_is_named(run, name):
    (run / name).unlink()
    with pytest.raises(ValueError, match=f"{name}: the file is missing. A report needs the whole folder"):
        write_report(run)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metrics.json", "{}", r'metrics\.json: the field "run" is missing'),
        ("metrics.json", '{"run": {"route_on": "image"}}', r'metrics\.json: "run" lacks the field "modalities"'),
        ("history.jsonl", '{"epoch": 0, "train_loss": 1}', r'history\.jsonl: a line lacks the field "val_loss"'),
        ("zero_shot/first set.json", "[]", r"first set\.json: expected a JSON object, got list"),
        ("zero_shot/first set.json", '{"set": "a"}', r'first set\.json: the field "accuracy" is missing'),
        ("explain/examples.npz", "no archive", r"examples\.npz: expected arrays saved by numpy\.savez"),
    ],
)
def test_an_unusable_file_is_named(run, name, content, message):
    (run / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        write_report(run)


def test_a_damaged_confusion_names_its_file(run):
    change_json(run / "zero_shot" / "first set.json", lambda one: one["confusion"].pop("matrix"))
    with pytest.raises(ValueError, match=r"first set\.json: the field 'matrix' is missing"):
        write_report(run)


def test_files_that_contradict_each_other_are_refused(run):
    change_json(run / "zero_shot" / "first set.json", lambda one: one.update(accuracy=0.999))
    with pytest.raises(ValueError, match=r"the result of 'first set' is not the one of metrics\.json"):
        write_report(run)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hits": None}, r"the arrays \['hits'\] are missing"),
        ({"ids": np.array(["a"])}, "expected 2 studies in every array, got 1 in 'ids'"),
        ({"hits": np.zeros((2, 5))}, r"'hits' must hold 2 words per study, got shape \(2, 5\)"),
        ({"expert_probs": np.zeros((2, 4))}, r"'expert_probs' must hold 3 experts per study, got shape \(2, 4\)"),
        ({"words": np.array(["a", "b"])}, r"'words' must hold some words per study, got shape \(2,\)"),
        (
            {"images": np.zeros((2, 4, 4))},
            r"examples\.npz: a value is not what a report .*pixels must be uint8",
        ),
        ({"boxes": np.array(["[", ""])}, r"examples\.npz: a value is not what a report expects"),
        ({"boxes": np.array(['[{"finding": "a"}]', ""])}, r"examples\.npz: the field 'x0' is missing"),
        ({"word_maps": np.full((2, 2, 3, 3), -1.0)}, r"examples\.npz: a value .* not finite|must be finite"),
    ],
)
def test_examples_that_do_not_fit_are_refused(run, changes, message):
    arrays = {key: value for key, value in (examples() | changes).items() if value is not None}
    np.savez(run / "explain" / "examples.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        write_report(run)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(zero_shot={}), r'"zero_shot" lacks the field "accuracy"'),
        (lambda m: m.update(zero_shot=[1]), r'metrics\.json: "zero_shot" must be an object, got list'),
        (lambda m: m.update(run=None), r'metrics\.json: "run" must be an object, got NoneType'),
        (lambda m: m.update(training=[1]), r"metrics\.json: a value is not what a report expects"),
        (lambda m: m["zero_shot"].update(sets=["first set"]), r"metrics\.json: a value is not what a report expects"),
        (lambda m: m["zero_shot"].update(route_on="coin"), r"metrics\.json: the field 'coin' is missing"),
        (lambda m: m["routing"].update(matrix=[[1.0]]), r"metrics\.json: a value is not what a report expects"),
        (lambda m: m["retrieval"].pop("texts"), r"metrics\.json: the field 'texts' is missing"),
        (lambda m: m["probe"]["first set"].pop("chance"), r"metrics\.json: the field 'chance' is missing"),
        (lambda m: m["pointing_game"].pop("left_out"), r"metrics\.json: the field 'left_out' is missing"),
    ],
)
def test_damage_deep_in_the_metrics_names_the_file(run, change, message):
    change_json(run / "metrics.json", change)
    with pytest.raises(ValueError, match=message):
        write_report(run)
