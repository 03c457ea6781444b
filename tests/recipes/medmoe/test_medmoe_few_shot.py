"""Few-shot classifiers: the draws, each method against its formula, and the stage."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax

from recipes.medmoe.few_shot import stage as few_shot
from recipes.medmoe.few_shot.methods import Labelled, Texts, linear, prototypes, tip_adapter
from recipes.medmoe.few_shot.shots import draw_shots
from recipes.shared.runs import read_json


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(-1, 2), min_size=1, max_size=40), st.integers(1, 5), st.integers(1, 4), st.integers(0, 9))
def test_shots_are_as_many_as_there_are_of_different_patients_first(truth, shots, per_group, seed):
    classes = np.array(truth)
    groups = [f"g{row // per_group}" for row in range(len(truth))]
    rows = draw_shots(classes, groups, shots, seed)
    for c in set(truth) - {-1}:
        own = [row for row in rows if classes[row] == c]
        having = np.flatnonzero(classes == c)
        assert len(own) == min(shots, len(having))
        patients = {groups[row] for row in having}
        assert len({groups[row] for row in own}) == min(len(own), len(patients))
    assert (classes[rows] >= 0).all()
    assert set(rows) <= set(draw_shots(classes, groups, shots + 1, seed))  # more shots hold the fewer


def test_shots_refuse():
    with pytest.raises(ValueError, match=r"shots must be at least 1, got 0 \(--shots\)"):
        draw_shots(np.array([0]), ["a"], 0, 0)


def unit(values):
    return values / np.linalg.norm(values, axis=-1, keepdims=True)


@pytest.fixture
def cluster():
    """Embeddings around three directions, five labelled ones, and texts that know nothing."""
    rng = np.random.default_rng(0)
    centres = np.eye(3, 6)
    classes = np.array([0, 0, 1, 1, 2])
    labelled = Labelled(unit(centres[classes] + 0.1 * rng.normal(size=(5, 6))), classes, list("abcde"), 0)
    truth = rng.integers(3, size=30)
    images = unit(centres[truth] + 0.1 * rng.normal(size=(30, 6)))
    return images, truth, labelled, Texts(unit(rng.normal(size=(3, 6))), 4.0, 1.5, 5.5)


def test_prototypes_are_the_formula(cluster):
    images, truth, labelled, texts = cluster
    means = unit(np.stack([labelled.embeddings[labelled.classes == c].mean(0) for c in range(3)]))
    assert prototypes(images, labelled, texts) == pytest.approx(softmax(4 * images @ means.T, axis=1))
    assert (prototypes(images, labelled, texts).argmax(1) == truth).all()


def test_tip_adapter_is_the_formula(cluster):
    images, _, labelled, texts = cluster
    scores = 4 * images @ texts.classes.T
    for n in range(len(images)):
        for m, c in enumerate(labelled.classes):
            even = (5 / 3) / (labelled.classes == c).sum()
            scores[n, c] += 1.5 * even * np.exp(-5.5 * (1 - images[n] @ labelled.embeddings[m]))
    assert tip_adapter(images, labelled, texts) == pytest.approx(softmax(scores, axis=1))
    alone = tip_adapter(images, labelled, texts._replace(alpha=0.0))
    assert alone == pytest.approx(softmax(4 * images @ texts.classes.T, axis=1))


def test_a_linear_classifier_learns_the_shots(cluster):
    images, truth, labelled, texts = cluster
    probs = linear(images, labelled, texts)
    assert probs.sum(1) == pytest.approx(np.ones(30))
    assert (probs.argmax(1) == truth).mean() > 0.9


def test_the_stage_writes_scores_with_intervals_over_draws(pretrained_run, tmp_path, capsys):
    import shutil

    run = shutil.copytree(pretrained_run, tmp_path / "run")
    section = few_shot.main(run, set=("phantom-ct",), shots=(1, 2), draws=3, seed=5)
    printed = capsys.readouterr().out
    assert "chance 0.250, most frequent class 0." in printed
    assert "prompts alone: accuracy" in printed
    assert "1 of each class (4 in all), tip-adapter: accuracy" in printed
    result = read_json(run / "few_shot" / "phantom-ct.json")
    assert section == read_json(run / "metrics.json")["few_shot"]
    assert [(row["method"], row["shots"]) for row in result["results"]] == [
        (method, shots) for shots in (1, 2) for method in ("prototypes", "linear", "tip-adapter")
    ]
    row = result["results"][0]
    assert row["studies"] == [4, 4, 4]
    assert result["seeds"] == [5, 6, 7]
    assert row["accuracy"]["mean"] == pytest.approx(np.mean(row["accuracy"]["values"]))
    assert row["accuracy"]["ci95"][0] <= row["accuracy"]["mean"] <= row["accuracy"]["ci95"][1]
    assert 0 <= row["macro_auroc"]["mean"] <= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shots": (0,)}, r"shots must be at least 1, got 0 \(--shots\)"),
        ({"draws": 0}, r"draws must be at least 1, got 0 \(--draws\)"),
        ({"methods": ()}, r"methods must name one at least"),
        ({"beta": 0.0}, r"beta above 0"),
    ],
)
def test_options_out_of_range_are_refused(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        few_shot.main(tmp_path, **arguments)


def test_sets_without_shots_are_refused(pretrained_run):
    from dataclasses import replace

    from recipes.medmoe.data.labelled_sets import open_sets
    from recipes.medmoe.few_shot.evaluation import few_shot_set
    from recipes.medmoe.inference.run import Session
    from recipes.medmoe.zero_shot.prompt_files import parse_prompts

    session = Session.open(pretrained_run)
    ((one, own),) = open_sets(session, names=("phantom-ct",))
    arguments = {"shots": (1,), "methods": ("prototypes",), "seeds": (0,), "alpha": 1.0, "beta": 5.5}
    prompts = parse_prompts(own, one.name)
    with pytest.raises(ValueError, match="has no train split, from which shots are drawn: it has test"):
        few_shot_set(session, replace(one, splits={"test": one.splits["test"]}), prompts, **arguments)
    with pytest.raises(ValueError, match="several labels per image"):
        few_shot_set(session, replace(one, task="multi-label"), prompts, **arguments)
