import json
import re

import numpy as np
import pandas as pd
import pytest

from recipes.shared.scores.metrics import evaluate_predictions
from tests.recipes.json_files import change_json, number_epochs_from_zero
from tests.recipes.medvlmoe.report_runs import Elements, change_examples, read, write_run


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "run")


def test_the_report_shows_the_run_s_figures(run):
    text = read(run)
    test = json.loads((run / "metrics.json").read_text())["test"]
    low, high = test["macro_auroc_ci95"]
    assert f"<dd>{test['macro_auroc']:.3f}<small>95% CI {low:.3f} to {high:.3f}</small>" in text
    assert f"{test['per_class']['Effusion']['average_precision']:.3f}" in text
    assert "best: 0.700 in epoch 3" in text
    assert "maximum ln 4 = 1.39" in text
    assert "1.23 M" in text
    assert "1 min 15 s" in text
    assert "a note of the source" in text
    assert text.count("<article") == 2
    assert "No text came with this study" in text
    assert "Expert E" in text


def test_the_report_shows_calibration_and_operating_points(run):
    text = read(run)
    metrics = json.loads((run / "metrics.json").read_text())
    calibration, scores = metrics["calibration"], metrics["calibration"]["calibrated"]["per_class"]["Effusion"]
    assert f"{calibration['val_nll_before']:.4f} to\n{calibration['val_nll_after']:.4f}" in text
    assert f">{calibration['temperature']['Effusion']:.2f}</td>" in text
    assert f"ECE {scores['ece']:.3f}, floor {scores['ece_floor']:.3f}" in text
    assert "for want of positives or negatives in the validation split: Hernia" in text
    assert text.count('aria-label="reliability of') == 3
    point = metrics["operating_points"]["Effusion"]["youden"]
    low, high = point["sensitivity_ci95"]
    assert f">{point['sensitivity']:.3f} ({low:.3f} to {high:.3f})</td>" in text
    assert "specificity ≥ 0.9" in text
    assert f">{metrics['test']['macro_average_precision']:.3f}</td>" in text


def test_the_report_shows_subgroups(run):
    text = read(run)
    sex = json.loads((run / "metrics.json").read_text())["subgroups"]["sex"]
    for value in ("F", "M"):
        one = sex["values"][value]
        low, high = one["macro_auroc_ci95"]
        assert f'<th>{value}</th><td class="r">{one["macro_auroc"]:.3f}</td>' in re.sub(r"\s*\n", "", text)
        assert f"{low:.3f} to {high:.3f}" in text
    assert "<h2>Subgroups: sex</h2>" in text
    assert f"Means over the {len(sex['classes'])} of 3 classes that are defined in every row" in text
    assert "Too small to score: PA &lt;i&gt; (10)." in text


def test_a_run_evaluated_by_an_older_version_has_no_calibration(run):
    def older(metrics):
        del metrics["calibration"], metrics["operating_points"], metrics["subgroups"]
        for scores in (metrics["test"], *metrics["test"]["per_class"].values()):
            for key in [key for key in scores if "average_precision_ci" in key or key == "macro_average_precision"]:
                del scores[key]

    change_json(run / "metrics.json", older)
    text = read(run)
    assert "<h2>Test scores by class</h2>" in text
    assert "Calibration" not in text
    assert "Operating points" not in text
    assert "Subgroups" not in text


def test_the_notes_name_the_limits_of_the_figures(run):
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


def test_dead_experts_are_a_warning_and_the_gauge_is_that_of_the_load(run):
    change_json(run / "metrics.json", lambda value: value["experts"].update(load=[0.25, 0.25, 0.25, 0.25]))
    healthy = read(run)
    assert "Entropy of the load: 1.39 nats; 4 of 4 experts live" in healthy
    assert "<strong>Warning:</strong>" not in healthy
    assert 'class="gauge bad"' not in healthy

    change_json(run / "metrics.json", lambda value: value["experts"].update(load=[0.5, 0.48, 0.01, 0.01], entropy=1.35))
    collapsed = read(run)
    assert "the router has collapsed: 98 % of the slots go to experts 0, 1; 2 of 4 experts are dead (2, 3)" in collapsed
    assert 'class="gauge bad"' in collapsed
    assert "1.35 of at most 1.39 nats. A high one means that the router is undecided" in collapsed


def test_a_model_without_experts_or_attention_or_examples(run):
    change_json(run / "metrics.json", lambda value: value.update(experts=None))
    change_examples(run, attention=None, experts=None, gates=None)
    text = read(run)
    assert "This model has no mixture of experts" in text
    assert "Attention" not in text
    assert "Expert E" not in text
    (run / "examples.npz").unlink()
    assert "The run saved no example studies" in read(run)


def test_attention_to_a_single_patch_is_not_drawn(run):
    change_examples(run, attention=np.ones((2, 1, 1), np.float32))
    assert "Attention" not in read(run)


def test_colour_images(run):
    change_examples(run, images=np.full((2, 16, 16, 3), 90, np.uint8))
    assert read(run).count('alt="image of study') == 2


def test_one_epoch(tmp_path):
    text = read(write_run(tmp_path / "run", epochs=1))
    assert "best: 0.500 in epoch 1" in text
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


def test_empty_examples_are_no_examples(run):
    with np.load(run / "examples.npz") as file:
        np.savez(run / "none.npz", **{key: file[key][:0] for key in file.files})
    (run / "none.npz").replace(run / "examples.npz")
    assert "The run saved no example studies" in read(run)


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


@pytest.mark.parametrize("task", ["multi-class", "ordinal-regression"])
def test_single_label_tasks_show_confusion_f1_kappa_and_balanced_accuracy(tmp_path, task):
    run = write_run(tmp_path / "run", task=task, classes=["a", "b", "c"])
    scores = json.loads((run / "metrics.json").read_text())["test"]["single_label"]
    text = read(run)
    for title, key in (("Balanced accuracy", "balanced_accuracy"), ("Macro F1", "macro_f1"), ("kappa", "kappa")):
        assert re.search(rf"{title}</th>\s*<td class=\"r\">{scores[key]:.3f}</td>", text), title
    section = text[text.index("<h2>Confusion") :]
    cells = re.findall(
        r'<td style="--a:[^>]*>([\d,]+)</td>', section[: section.index("</table>", section.index("heat"))]
    )
    assert [int(cell) for cell in cells] == [count for row in scores["confusion"]["matrix"] for count in row]
    assert ("square of the distance" in text) == (task == "ordinal-regression")


def test_multi_label_tasks_and_older_runs_have_no_confusion(run):
    assert "<h2>Confusion" not in read(run)
    change_json(run / "metrics.json", lambda value: value["test"].pop("single_label"))
    assert "<h2>Confusion" not in read(run)


def test_precision_over_recall_is_drawn_for_every_class_that_has_both_outcomes(run):
    labels = [attributes.get("aria-label") for _, attributes in Elements(read(run)).seen]
    assert [label for label in labels if label and label.startswith("precision-recall")] == [
        "precision-recall curve of Effusion",
        "precision-recall curve of Mass <b>",
    ]


def test_false_positives_differ_from_true_negatives_by_the_threshold_of_the_validation_split(run):
    change_examples(
        run, probs=np.array([[0.2, 0.6, 0.1], [0.2, 0.6, 0.1]]), labels=np.array([[0.0, 0, 1], [0.0, 0, 1]])
    )
    points = json.loads((run / "metrics.json").read_text())["operating_points"]
    change_json(run / "metrics.json", lambda value: value.pop("operating_points"))
    text = read(run)
    assert (text.count("false positive</td>"), text.count("○ absent</td>"), text.count("missed</td>")) == (2, 2, 2)
    for name in ("Effusion", "Mass <b>"):
        points[name]["youden"]["threshold"] = 0.1
    change_json(run / "metrics.json", lambda value: value.update(operating_points=points))
    text = read(run)
    assert (text.count("false positive</td>"), text.count("○ absent</td>"), text.count("missed</td>")) == (4, 0, 2)


def test_the_largest_errors_have_a_gallery(run):
    assert "Largest errors" not in read(run)
    with np.load(run / "examples.npz") as file:
        np.savez(run / "errors.npz", **dict(file), errors=np.array(["Mass: missed at 0.02", "Mass <i>"]))
    text = read(run)
    assert text.count("<article") == 4
    assert '<p class="error">Mass: missed at 0.02</p>' in text
    assert "Mass &lt;i&gt;" in text


def test_boxes_carry_the_names_of_their_findings(run):
    boxes = [
        {"finding": "Left <i>", "x0": 4, "y0": 8, "x1": 12, "y1": 12},
        {"finding": "Top right", "x0": 20, "y0": 0, "x1": 28, "y1": 9},
    ]
    change_examples(run, boxes=np.array([json.dumps(boxes), "[]"]))
    text = read(run)
    assert '<b style="left:12.5%;top:25.0%">Left &lt;i&gt;</b>' in text
    assert '<b class="right inside" style="left:87.5%;top:0.0%">Top right</b>' in text


def test_many_boxes_carry_numbers_that_the_caption_explains(run):
    boxes = [{"finding": name, "x0": 4, "y0": 8, "x1": 12, "y1": 12} for name in ("Mass", "Edema", "Mass")]
    change_examples(run, boxes=np.array([json.dumps(boxes), "[]"]))
    text = read(run)
    assert re.findall(r'<b style="[^"]*">([^<]*)</b>', text) == ["1", "2", "1"]
    assert "Image, boxes: 1 Mass, 2 Edema" in text


def test_epochs_are_counted_from_one(run):
    text = read(run)
    assert "counted from 1" in text
    assert "The tested weights are those of epoch 3." in text


def test_a_run_that_numbered_epochs_from_zero_has_the_same_report(run):
    text = read(run)
    number_epochs_from_zero(run)
    assert read(run) == text
