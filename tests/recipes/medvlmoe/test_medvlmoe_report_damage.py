import numpy as np
import pytest

from recipes.medvlmoe.report import write_report
from tests.recipes.json_files import change_json
from tests.recipes.medvlmoe.report_runs import change_examples, write_run


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "run")


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
        (lambda m: m["calibration"].pop("scope"), r"metrics\.json: the field 'scope' is missing"),
        (lambda m: m.update(operating_points=[1]), r"metrics\.json: a value is not what a report expects"),
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


def test_a_report_that_cannot_be_written_is_refused_at_once(run, tmp_path):
    (run / "report.html").mkdir()
    with pytest.raises(ValueError, match=r"report\.html is a folder, but the stage writes a file of this name"):
        write_report(run)
    with pytest.raises(ValueError, match="absent does not exist: is it the folder of a finished run"):
        write_report(tmp_path / "absent")
