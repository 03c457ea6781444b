"""What the pointing game is compared with: the word of an absent finding, a fixed place, and the mean map."""

from dataclasses import replace
from unittest.mock import create_autospec

import numpy as np
import pytest

from recipes.data.pairs import PairStream
from recipes.data.phantom import phantom_several_findings
from recipes.data.studies import Box
from recipes.medmoe.explain import stage as explain
from recipes.medmoe.explain.from_training import learn_boxes, mean_maps
from recipes.medmoe.explain.game import absent_maps, line, play
from recipes.medmoe.explain.pointing import Pointing, summarise
from recipes.medmoe.explain.rates import draw_rates
from recipes.medmoe.explain.renaming import renamed
from recipes.medmoe.explain.seen import look
from recipes.medmoe.explain.word_maps import finding_words
from recipes.medmoe.inference.run import Session
from tests.recipes.medmoe.test_medmoe_explain import Pairs, changed


@pytest.fixture(scope="module")
def session(pretrained_run):
    return Session.open(pretrained_run)


@pytest.fixture(scope="module")
def train(session):
    split = session.source().train
    return Pairs([split[row] for row in range(24)])


@pytest.fixture(scope="module")
def test(session):
    split = session.source().test
    return Pairs([split[row] for row in range(16)])


@pytest.fixture(scope="module")
def learnt(session, train):
    return learn_boxes(session, train)


def test_another_name_stands_where_the_finding_was_named():
    text = "Pleural effusion at the base, a pleural effusion. No effusion"
    words = ["Pleural", "effusion", "at", "the", "base", ",", "a", "pleural", "effusion", ".", "No", "effusion"]
    places = finding_words("pleural effusion", words)
    assert renamed(text, words, places, "lung nodule") == "lung nodule at the base, a lung nodule. No effusion"
    assert renamed(text, words, [4], "apex") == text.replace("base", "apex")
    assert renamed(text, words[:2], [0, 1], "nodule") == text.replace("Pleural effusion", "nodule", 1)
    assert renamed(text, words, [], "nodule") == text
    assert renamed(text, [word.lower() for word in words], [0, 1], "Nodule").startswith("Nodule at the base")
    assert renamed(text, ["apex"], [0], "nodule") is None


def test_places_count_the_boxes_that_hold_each_cell(session, train, learnt):
    boxed = [study for study in train.studies if study.boxes]
    finding, modality = boxed[0].boxes[0].finding, boxed[0].modality
    assert finding in learnt.findings[modality]
    expected = np.zeros((64, 64))
    for study in boxed:
        for box in study.boxes:
            if box.finding == finding:
                for row in range(64):
                    for column in range(64):
                        inside = box.x0 <= column + 0.5 < box.x1 and box.y0 <= row + 0.5 < box.y1
                        expected[row, column] += inside
    assert np.array_equal(learnt.places[finding], expected)
    assert learn_boxes(session, changed(train, boxes=())) is None
    assert learn_boxes(session, create_autospec(PairStream, instance=True)) is None


def test_absent_maps_are_those_of_the_renamed_report(session, test, learnt):
    seen = [one for one in look(session, test.studies) if one.study.boxes]
    maps = absent_maps(session, seen, learnt, None)
    one = seen[0]
    (finding,) = one.findings()
    others = [name for name in learnt.findings[one.study.modality] if name != finding]
    assert len(maps[one.study.id, finding]) == len(others)
    text = one.study.text.lower().replace(finding, others[0])
    by_hand = look(session, [replace(one.study, boxes=(), text=text)])[0]
    np.testing.assert_allclose(maps[one.study.id, finding][0], by_hand.finding_map(others[0]), atol=1e-5)
    assert absent_maps(session, seen, None, None) == {}


def test_the_game_plays_its_baselines(session, test, learnt):
    game, _ = play(session, test, learn=lambda: learnt, bootstrap=20)
    boxed = [study for study in test.studies if study.boxes]
    hits = []
    for study in boxed:
        heat = learnt.places.get(study.boxes[0].finding)
        if heat is None:
            continue
        cells = np.argwhere(heat == heat.max())
        box = session.boxes(study)[0]
        xs, ys = (cells[:, 1] + 0.5) * 64 / heat.shape[1], (cells[:, 0] + 0.5) * 64 / heat.shape[0]
        hits.append(np.mean((box.x0 <= xs) & (xs < box.x1) & (box.y0 <= ys) & (ys < box.y1)))
    assert game["fixed_baseline"] == pytest.approx(np.mean(hits))
    assert 0 <= game["absent_baseline"] <= 1
    assert game["several_findings"] is None
    without, _ = play(session, test, bootstrap=20)
    assert (without["absent_baseline"], without["fixed_baseline"], without["above_fixed_ci95"]) == (None, None, None)
    assert without["hit_rate"] == game["hit_rate"]
    assert "absent word" in line(game)
    assert "absent word" not in line(without)


def test_images_with_several_findings_are_a_row_of_their_own(session, learnt):
    split = phantom_several_findings(count=6, size=64)
    game, played = play(session, split, learn=lambda: learnt, bootstrap=20)
    assert game["rounds"] == sum(len(study.boxes) for study in split.studies) == sum(map(len, played.values()))
    assert game["several_findings"]["rounds"] == game["rounds"]
    assert "on images with several findings: hit rate" in line(game)
    assert "(drawn for this)" in line(game | {"several_findings_drawn": True})


def test_the_model_is_compared_round_by_round():
    rounds = [
        Pointing("a", f"p{number}", hit=1, center=0, random=0.1, absent=number % 2, fixed=0.5, findings=1 + number // 6)
        for number in range(8)
    ] + [Pointing("b", "q", hit=0, center=0, random=0.1)]
    result = summarise(rounds, bootstrap=300)
    assert (result["absent_baseline"], result["fixed_baseline"]) == (0.5, 0.5)
    assert result["above_fixed_ci95"] == [0.5, 0.5]  # known for the rounds of "a" only, where it is always 0.5
    low, high = result["above_absent_ci95"]
    assert 0 < low < 0.5 < high <= 1
    assert result["several_findings"]["rounds"] == 2
    assert result["several_findings"]["hit_rate"] == 1
    assert result["per_finding"]["b"]["absent_baseline"] is None
    assert result["per_finding"]["b"]["above_absent_ci95"] is None


def test_removing_the_mean_leaves_what_differs_from_it(session, train, test):
    means = mean_maps(session, train)
    plain, above = (look(session, test.studies[:4], means=given) for given in (None, means))
    for one, other in zip(plain, above, strict=True):
        difference = one.maps - means[one.expert]
        np.testing.assert_allclose(other.maps, difference - difference.min((1, 2), keepdims=True), atol=1e-6)
    seen = look(session, train.studies)
    expert = seen[0].expert
    maps = np.concatenate([one.maps for one in seen if one.expert == expert])
    np.testing.assert_allclose(means[expert], maps.mean(0), atol=1e-6)
    with pytest.raises(ValueError, match="which are a stream here: leave out --remove-mean"):
        mean_maps(session, create_autospec(PairStream, instance=True))


def test_the_picture_shows_every_finding(tmp_path):
    rates = {"hit_rate": 0.5, "hit_rate_ci95": [0.4, 0.6], "center_baseline": 0.1, "random_baseline": 0.1}
    rates |= {"absent_baseline": None, "fixed_baseline": 0.2, "reachable": 0.9, "rounds": 4}
    few, many = (
        draw_rates(rates | {"per_finding": {f"finding {i}": rates for i in range(n)}}, tmp_path / f"{n}.png")
        for n in (1, 12)
    )
    assert many.stat().st_size > few.stat().st_size > 5000


def test_the_stage_plays_on_drawn_studies_with_several_findings(session, tmp_path, pretrained_run, monkeypatch):
    import shutil

    run = tmp_path / "run"
    shutil.copytree(pretrained_run, run)

    def few(**options):
        return phantom_several_findings(**options | {"count": 8})

    monkeypatch.setattr(explain, "phantom_several_findings", few)
    game = explain.main(run, count=1, bootstrap=20, remove_mean=True).pointing_game
    assert game["mean_removed"]
    assert game["several_findings_drawn"]
    assert game["several_findings"]["studies"] == 8
    assert (run / "explain" / "findings.png").exists()


def test_boxes_of_several_kinds_of_image_are_kept_apart(session, train):
    square = np.zeros((64, 64), np.uint8)
    studies = [
        replace(train.studies[0], image=square, modality=modality, boxes=(Box(finding, 0, 0, 8, 8),))
        for modality, finding in (("ct", "cyst"), ("ct", "stone"), ("mri", "plaque"), ("ct", "cyst"))
    ]
    assert learn_boxes(session, Pairs(studies)).findings == {"ct": ["cyst", "stone"], "mri": ["plaque"]}
