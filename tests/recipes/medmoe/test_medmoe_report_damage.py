import numpy as np
import pytest

from recipes.medmoe.report import write_report
from tests.recipes.json_files import change_json
from tests.recipes.medmoe.report_runs import examples, write_run


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "run")


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
