import shutil
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from recipes.data.evaluation.types import EvaluationSet
from recipes.data.studies import Study
from recipes.medmoe.build import new_model
from recipes.medmoe.config import Config
from recipes.medmoe.inference.run import Session
from recipes.medmoe.probe import features as features_module
from recipes.medmoe.probe import stage as probe
from recipes.medmoe.probe.evaluation import probe_set
from recipes.medmoe.probe.features import Features, set_features
from recipes.medmoe.probe.linear import fit_probe, predict_probe, validation_score
from recipes.medmoe.probe.subsets import draw_subset
from recipes.shared.runs import read_json, update_metrics


@dataclass
class Pictures:
    """Images held in memory, two of a patient."""

    name: str
    images: list
    labels: np.ndarray

    def __post_init__(self):
        self.ids = [f"{self.name} {row}" for row in range(len(self))]
        self.groups = [f"{self.name} patient {row // 2}" for row in range(len(self))]
        self.texts = [None] * len(self)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, row):
        return Study(self.ids[row], self.groups[row], self.images[row], None, self.labels[row])


def picture_set(*, contrast=150, modality="ct", task="binary-class", sizes=(24, 12, 16), seed=0):
    """Images of two classes that differ in brightness."""
    rng = np.random.default_rng(seed)
    splits = {}
    for name, count in zip(("train", "val", "test"), sizes, strict=True):
        truth = rng.permutation(np.arange(count) % 2)
        images = [(rng.integers(0, 100, (32, 32)) + contrast * label).astype(np.uint8) for label in truth]
        splits[name] = Pictures(name, images, np.eye(2, dtype=np.float32)[truth])
    return EvaluationSet("pictures", task, ("dark", "bright"), modality, splits)


@pytest.fixture
def run(pretrained_run, tmp_path):
    return shutil.copytree(pretrained_run, tmp_path / "run")


def session_of(run, **model):
    """An untrained model with the settings of the run, but for some."""
    config = Config.from_json(read_json(run / "config.json"))
    config = replace(config, model=replace(config.model, **model))
    torch.manual_seed(0)
    return Session(run, config, new_model(config, ["a"]).eval().requires_grad_(False), torch.device("cpu"))


def test_a_call_writes_results_and_keeps_those_of_other_sets(run, capsys):
    update_metrics(run, probe={"earlier": {"kept": True}})
    section = probe.main(run, set=("phantom-ct",), fractions=(0.5, 1.0), subsets=2, features="both", seed=7)
    printed = capsys.readouterr().out
    assert "validation studies; chance 0.250, most frequent class 0." in printed
    assert "fitted on the share of training alone, weight decay chosen on" in printed
    assert "  50% of training (" in printed
    assert "macro AUROC" in printed
    assert section == read_json(run / "metrics.json")["probe"]
    assert section["earlier"] == {"kept": True}
    assert {"accuracy", "macro_f1", "kappa"} <= set(section["phantom-ct"]["fractions"][0])
    result = read_json(run / "probe" / "phantom-ct.json")
    half, full = result["fractions"]
    assert [one["seed"] for one in half["subsets"]] == [7, 8]
    assert half["accuracy"]["mean"] == pytest.approx(np.mean(half["accuracy"]["values"]))
    assert half["accuracy"]["sd"] == pytest.approx(np.std(half["accuracy"]["values"], ddof=1))
    assert full["accuracy"]["sd"] is None
    assert full["subsets"][0]["refit_studies"] == result["studies"]["train"]
    assert half["subsets"][0]["refit_studies"] == half["subsets"][0]["train_studies"] < result["studies"]["train"]
    assert full["subsets"][0]["chosen_on"] == result["studies"]["val"]
    assert sum(result["routing"]["test_counts"]) == result["studies"]["test"]
    assert result["routing"]["by"] == "image"


def test_a_difference_that_features_show_is_learnt(run):
    result = probe_set(session_of(run), picture_set(), fractions=(0.1, 1.0), subsets=2)
    for score in ("accuracy", "balanced_accuracy", "macro_f1", "kappa"):
        assert all(row[score]["mean"] == 1 for row in result["fractions"])
    assert len(result["fractions"][0]["kappa"]["values"]) == 2
    assert result["chance"] == 0.5


def test_noise_is_not_learnt(run):
    result = probe_set(session_of(run), picture_set(contrast=0, sizes=(60, 30, 200)), fractions=(1.0,))
    assert result["fractions"][0]["macro_auroc"]["mean"] == pytest.approx(0.5, abs=0.15)


def test_a_refit_with_validation_is_stated(run):
    result = probe_set(session_of(run), picture_set(), fractions=(1.0,), refit="train+val")
    assert result["fractions"][0]["subsets"][0]["refit_studies"] == 24 + 12
    assert result["protocol"].startswith("fitted on the share of training and 12 validation studies")


def test_selection_inside_the_subset_needs_no_validation_split(run):
    one = picture_set()
    one = replace(one, splits={name: one.splits[name] for name in ("train", "test")})
    result = probe_set(session_of(run), one, fractions=(0.5, 1.0), subsets=1, select="subset")
    subset = result["fractions"][0]["subsets"][0]
    assert subset["chosen_by"] == "5 folds"
    assert subset["chosen_on"] == subset["train_studies"] == subset["refit_studies"]
    assert result["fractions"][1]["accuracy"]["mean"] == 1
    with pytest.raises(ValueError, match="has no val split, which a linear probe needs"):
        probe_set(session_of(run), one, select="subset", refit="train+val")


def test_features_are_kept_until_what_made_them_changes(run, monkeypatch):
    made = []
    compute = features_module._compute
    monkeypatch.setattr(features_module, "_compute", lambda *a, **k: made.append(1) or compute(*a, **k))
    session = session_of(run)
    arguments = {"local": True, "modality": None, "checkpoint": "best"}
    first = set_features(session, picture_set(), "test", **arguments)
    again = set_features(session, picture_set(), "test", **arguments)
    assert len(made) == 1
    for one, other in zip(first, again, strict=True):
        assert np.array_equal(one, other)
    set_features(session, picture_set(), "test", **(arguments | {"local": False}))
    assert len(made) == 2
    set_features(session, picture_set(contrast=90), "test", **(arguments | {"local": False}))
    assert len(made) == 3
    (run / "checkpoints" / "best.ckpt").write_bytes(b"other weights")
    set_features(session, picture_set(contrast=90), "test", **(arguments | {"local": False}))
    assert len(made) == 4


def test_by_report_the_kind_of_the_images_chooses_the_expert_or_only_global_features_are_left(run):
    session = session_of(run, route_on="text")
    result = probe_set(session, picture_set(modality="mri"), kind="local", fractions=(1.0,))
    assert (result["routing"]["route_on"], result["routing"]["by"]) == ("text", "label")
    assert result["routing"]["test_counts"][session.modalities.index("mri")] == 16
    unknown = picture_set(modality=None)
    with pytest.raises(ValueError, match=r"experts by the report, and a labelled image has none.*features='global'"):
        probe_set(session, unknown, kind="both", fractions=(1.0,))
    assert probe_set(session, unknown, kind="global", fractions=(1.0,))["routing"] is None
    by_kind = probe_set(session, unknown, kind="local", fractions=(1.0,), modality="xray")
    assert by_kind["routing"]["test_counts"][session.modalities.index("xray")] == 16


def test_by_label_an_unknown_kind_is_refused(run):
    with pytest.raises(ValueError, match="is not known for 24 of 24 images"):
        probe_set(session_of(run, route_on="label"), picture_set(modality=None), kind="local")


def test_both_kinds_of_features_stand_beside_one_another():
    result = Features(np.zeros((2, 3), np.float32), np.ones((2, 4), np.float32), np.zeros(2, int))
    assert result.matrix("both").sum(1).tolist() == [4, 4]
    assert result.matrix("global").shape[1] + result.matrix("local").shape[1] == result.matrix("both").shape[1]
    with pytest.raises(ValueError, match="features='both' needs the expert of every image"):
        result._replace(regions=None).matrix("both")


def test_what_does_not_fit_is_refused(run):
    one = picture_set()
    lacking = replace(one, splits={"test": one.splits["test"]})
    with pytest.raises(ValueError, match="the set pictures has no train and no val split, which a linear probe needs"):
        probe_set(session_of(run), lacking)
    with pytest.raises(ValueError, match=r"fractions must name shares in \(0, 1\], got \(10\.0,\)"):
        probe_set(session_of(run), one, fractions=(10.0,))
    with pytest.raises(ValueError, match="subsets must be at least 1, got 0"):
        probe.main(run, subsets=0)


def test_the_regression_minimises_what_is_documented():
    rng = np.random.default_rng(0)
    x = rng.normal(3, 2, size=(40, 3))
    y = np.eye(3)[rng.integers(3, size=40)]
    fitted = fit_probe(x, y, "multi-class", 0.1)
    scaled = (x - x.mean(0)) / x.std(0)
    alone = LogisticRegression(C=1 / (0.1 * 40), max_iter=1000).fit(scaled, y.argmax(1))
    assert predict_probe(fitted, x, "multi-class") == pytest.approx(alone.predict_proba(scaled), abs=1e-6)
    assert fitted.converged


def test_unknown_labels_and_classes_without_examples():
    x = np.arange(6.0)[:, None]
    y = np.array([[1, 0, 1], [1, 0, np.nan], [1, 1, np.nan], [0, 1, 1], [0, np.nan, 1], [0, 1, 1]])
    probs = predict_probe(fit_probe(x, y, "multi-label", 1e-3), x, "multi-label")
    assert (probs[:3, 0] > 0.5).all()
    assert (probs[3:, 0] < 0.5).all()
    assert probs[4, 1] > 0.5  # Unknown there, and learnt from its neighbours.
    assert (probs[:, 2] == 1).all()  # Always present where it is known.
    single = np.eye(3)[[0, 0, 0, 1, 1, 1]]
    single[5] = np.nan
    probs = predict_probe(fit_probe(x, single, "multi-class", 1e-3), x, "multi-class")
    assert (probs[:, 2] == 0).all()
    assert probs.argmax(1).tolist() == [0, 0, 0, 1, 1, 1]
    only = predict_probe(fit_probe(x[:3], single[:3], "multi-class", 1.0), x, "multi-class")
    assert only.tolist() == [[1, 0, 0]] * 6
    with pytest.raises(ValueError, match="labels must be known for at least one study"):
        fit_probe(x, y * np.nan, "multi-class", 1.0)


def test_validation_prefers_accuracy_and_then_likelihood():
    labels = np.eye(2)
    sure, unsure = np.array([[0.9, 0.1], [0.1, 0.9]]), np.array([[0.6, 0.4], [0.4, 0.6]])
    wrong = unsure[::-1]
    assert validation_score(sure, labels, "multi-class") == (1.0, pytest.approx(np.log(0.9)))
    ranked = [validation_score(probs, labels, "multi-class") for probs in (wrong, unsure, sure)]
    assert ranked == sorted(ranked)
    assert validation_score(sure, labels, "multi-label") == (1.0, pytest.approx(np.log(0.9)))


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(0, 3), min_size=4, max_size=60),
    st.sampled_from([0.01, 0.1, 0.3, 1.0]),
    st.integers(1, 5),
    st.integers(0, 99),
)
def test_subsets_hold_whole_groups_and_every_class(truth, fraction, per_group, seed):
    labels = np.eye(4)[truth]
    groups = [f"g{row // per_group}" for row in range(len(truth))]
    rows = draw_subset(labels, groups, fraction, seed)
    assert rows.tolist() == sorted(set(rows.tolist()))
    taken = {groups[row] for row in rows}
    assert [row for row in range(len(truth)) if groups[row] in taken] == rows.tolist()
    assert set(np.array(truth)[rows]) == set(truth)
    assert np.array_equal(rows, draw_subset(labels, groups, fraction, seed))


def test_subsets_keep_the_proportions_of_the_classes():
    truth = np.repeat([0, 1, 2], [600, 300, 100])
    labels, groups = np.eye(3)[truth], [str(row) for row in range(1000)]
    counts = np.bincount(truth[draw_subset(labels, groups, 0.1, 0)])
    assert counts.tolist() == [60, 30, 10]
    assert not np.array_equal(draw_subset(labels, groups, 0.1, 0), draw_subset(labels, groups, 0.1, 1))
    assert len(draw_subset(labels, groups, 1.0, 0)) == 1000


def test_studies_without_any_finding_are_a_stratum():
    labels = np.zeros((200, 2))
    labels[:20, 0] = 1
    labels[10:40, 1] = 1
    labels[150:] = np.nan
    rows = draw_subset(labels, [str(row) for row in range(200)], 0.1, 0)
    assert 1 <= np.nansum(labels[rows, 0]) <= 2
    assert 1 <= np.nansum(labels[rows, 1]) <= 3
    assert (np.nansum(labels[rows], axis=1) == 0).sum() == 16


@pytest.mark.parametrize(
    ("fraction", "groups", "message"),
    [
        (0.0, ["a", "b"], r"fraction must lie in \(0, 1\], got 0"),
        (0.5, ["a"], r"labels must have shape \(studies, classes\) with one of 1 groups per study, got \(2, 2\)"),
    ],
)
def test_subsets_refuse(fraction, groups, message):
    with pytest.raises(ValueError, match=message):
        draw_subset(np.eye(2), groups, fraction, 0)
