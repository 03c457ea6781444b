import json
import re
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from moekit.contrastive import local_contrastive_loss, word_alignment_loss
from recipes.data.pairs import PairStream
from recipes.data.studies import Box, Study
from recipes.medmoe.explain import stage as explain
from recipes.medmoe.explain.examples import choose
from recipes.medmoe.explain.game import play
from recipes.medmoe.explain.pictures import PANEL, Explanation, draw, outcome, scale_range, shorten
from recipes.medmoe.explain.seen import explanation, look
from recipes.medmoe.explain.word_maps import distinct_words, finding_words, normal_form, word_maps
from recipes.medmoe.features import LocalFeatures
from recipes.medmoe.inference.run import Session
from recipes.medmoe.label_router import LabelRouter
from recipes.medmoe.report import write_report


class Pairs:
    """A split of a list of studies."""

    def __init__(self, studies):
        self.studies = studies
        self.modalities = [study.modality for study in studies]

    def __len__(self):
        return len(self.studies)

    def __getitem__(self, index):
        return self.studies[index]


def changed(split, **changes):
    return Pairs([replace(split[i], **changes) for i in range(len(split))])


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image)


def words_in(text):
    return text.split()


@pytest.fixture(scope="module")
def session(pretrained_run):
    return Session.open(pretrained_run)


@pytest.fixture(scope="module")
def split(session):
    test = session.source().test
    return Pairs([test[i] for i in range(24)])


@pytest.fixture(scope="module")
def explained(pretrained_run, tmp_path_factory):
    run = tmp_path_factory.mktemp("explained") / "run"
    shutil.copytree(pretrained_run, run)
    (run / "explain").mkdir()
    (run / "explain" / "example-07-of-an-earlier-call.png").touch()
    return run, explain.main(run, count=5, bootstrap=20)


def test_a_finding_is_named_by_its_whole_name_or_else_by_its_words():
    words = words_in("Pleural effusions at the left lung base , no effusion of the pericardium")
    assert finding_words("pleural effusion", words) == [0, 1]
    assert finding_words("Lung_nodule", words) == [5]
    assert finding_words("effusion, base of lung", words) == [1, 5, 6, 9]
    assert finding_words("mass of the", words) == []
    assert finding_words("of the", words) == []


def test_words_are_compared_without_case_punctuation_and_plural():
    assert [normal_form(word) for word in ("Cysts", "gas", "T2-", "…", "Ödeme")] == ["cyst", "gas", "t2", "", "ödeme"]
    words = words_in("No lung nodule , 12 mm , in the Lung ; T2 image")
    assert distinct_words(words) == {"lung": [1, 9], "nodule": [2], "image": [12]}


def test_maps_are_where_the_regions_are_like_the_word(session):
    """Three words and regions that are like them at one cell each: every map peaks there, not in a mirrored one."""
    directions = torch.eye(session.config.model.dim)[:3]
    regions = torch.zeros(1, session.config.model.dim, 4, 6)
    cells = [(0, 5), (2, 1), (3, 4)]
    for direction, (row, column) in zip(directions, cells, strict=True):
        regions[0, :, row, column] = 5 * direction
    local = LocalFeatures(regions, None, None, torch.full((1, 4, 4, 6), 0.25))
    fake = SimpleNamespace(model=SimpleNamespace(local=lambda *_, **__: local), config=session.config)
    text = SimpleNamespace(words=5 * directions[None], mask=torch.ones(1, 3, dtype=torch.bool))
    result = word_maps(fake, SimpleNamespace(embedding=torch.zeros(1, 2)), text, None)
    assert [divmod(int(one.argmax()), 6) for one in result.maps[0]] == cells
    assert result.maps.sum((2, 3)).tolist() == [pytest.approx([1.0, 1.0, 1.0])]


@pytest.mark.parametrize(("form", "word_softmax"), [("batch", True), ("batch", False), ("report", False)])
def test_maps_are_the_attention_of_the_loss_that_the_run_was_trained_with(session, split, form, word_softmax):
    model, train = session.config.model, session.config.train
    settings = {"model": replace(model, word_softmax=word_softmax), "train": replace(train, local_form=form)}
    trained = replace(session, config=replace(session.config, **settings))
    images = session.images([session.fit(split[i].image) for i in (0, 1)])
    text = session.texts([split[0].text, split[1].text])
    routing = session.model.route(image=images)
    regions = session.model.local(images, routing).regions.flatten(2).mT
    temperatures = session.config.model.temperatures
    options = {"temperatures": temperatures, "word_softmax": word_softmax}
    loss = local_contrastive_loss
    if form == "report":
        loss, options = word_alignment_loss, {"temperature": 1 / temperatures[2]}
    expected = loss(regions, text.words, text.mask, need_attention=True, **options).attention
    torch.testing.assert_close(word_maps(trained, images, text, routing).maps.flatten(2), expected)


def test_as_many_texts_as_images(session, split):
    images = session.images([session.fit(split[0].image)])
    text = session.texts(["one", "two"])
    with pytest.raises(ValueError, match="text must hold one report per image: expected 1, got 2"):
        word_maps(session, images, text, session.model.route(image=images))


def test_what_is_seen_is_what_the_model_computes(session, split):
    first, second = look(session, [split[0], split[1]])
    assert len(first.words) == len(first.maps)
    np.testing.assert_allclose(first.maps.sum((1, 2)), 1, atol=1e-5)
    np.testing.assert_allclose(first.scale_weights.sum(0), 1, atol=1e-5)
    assert first.expert == int(first.expert_probs.argmax())
    assert first.expert_probs.sum() == pytest.approx(1)
    alone = look(session, [split[1]])[0]
    np.testing.assert_allclose(second.maps, alone.maps, atol=1e-5)
    assert look(session, []) == []


def test_boxes_and_words_follow_the_letter_box(session, split):
    study = next(study for study in split.studies if study.boxes)
    tall = replace(study, image=np.pad(study.image, ((0, study.image.shape[0]), (0, 0))))
    seen, size = look(session, [tall])[0], session.config.model.image_size
    box, before = seen.study.boxes[0], study.boxes[0]
    assert seen.picture.shape[:2] == (size, size)
    assert (box.x0, box.y1) == pytest.approx((before.x0 / 2 + size / 4, before.y1 / 2))


def test_a_study_without_words_is_refused(session, split):
    with pytest.raises(ValueError, match="has no text, so there are no words to look at"):
        look(session, [replace(split[0], text=" ")])


def test_the_game_is_played_with_the_words_of_the_finding(session, split):
    game, played = play(session, split, bootstrap=10)
    boxed = [i for i in range(len(split)) if split[i].boxes]
    rounds = [(i, finding) for i in boxed for finding in {box.finding for box in split[i].boxes}]
    assert sorted(played) == boxed
    assert (game["studies"], game["left_out"], game["rounds"]) == (len(boxed), 0, len(rounds))
    hits = []
    for i, finding in rounds:
        seen = look(session, [split[i]])[0]
        best = seen.maps[finding_words(finding, seen.words)].mean(0)
        row, column = np.unravel_index(best.argmax(), best.shape)
        x, y = (column + 0.5) * 64 / best.shape[1], (row + 0.5) * 64 / best.shape[0]
        hits.append(any(b.x0 <= x < b.x1 and b.y0 <= y < b.y1 for b in seen.study.boxes if b.finding == finding))
    assert game["hit_rate"] == pytest.approx(np.mean(hits))
    assert set(game["per_finding"]) == {finding for _, finding in rounds}


def test_reports_without_the_finding_are_left_out_and_counted(session, split):
    boxed = sum(bool(study.boxes) for study in split.studies)
    game, played = play(session, changed(split, text="Nothing to report."), bootstrap=10)
    assert (game["hit_rate"], game["center_baseline"], played) == (None, None, {})
    assert (game["left_out"], game["reason"]) == (boxed, "no report holds a word of the name of its findings")
    nothing, _ = play(session, changed(split, boxes=()), bootstrap=10)
    assert (nothing["left_out"], nothing["reason"]) == (0, "the data hold no boxes")


def test_a_tolerance_as_wide_as_the_image_always_hits(session, split):
    game, _ = play(session, split, tolerance=64, bootstrap=0)
    assert game["hit_rate"] == game["center_baseline"] == game["random_baseline"] == 1


def test_findings_come_first_and_no_word_twice(session):
    study = Study(
        "s", "p", np.zeros((64, 64), np.uint8), "Liver mass and a second liver mass beside one simple cyst .",
        np.zeros(0, np.float32), (Box("liver mass", 0, 0, 64, 64), Box("kidney stone", 0, 0, 1, 1)), "ct",
    )  # fmt: skip
    shown = explanation(look(session, [study])[0])
    assert shown.words[0] == "liver mass"
    assert shown.hits[0] == 1
    assert np.isnan(shown.hits[1:]).all()
    assert len(shown.words) == len(shown.maps) == len(set(shown.words)) == 4
    assert set(shown.words[1:]) <= {"second", "beside", "one", "simple", "cyst"}


def test_choice_shows_modalities_and_findings_equally_often():
    kinds = [
        ("ct", ["stone"]),
        ("ct", ["stone"]),
        ("mri", []),
        ("mri", ["plaque"]),
        ("ct", ["cyst"]),
        ("mri", ["tumor"]),
    ]
    blank = np.zeros((4, 4), np.uint8)
    pairs = Pairs([Study(str(i), "p", blank, "t", np.zeros(0), modality=m) for i, (m, _) in enumerate(kinds)])
    played = {i: findings for i, (_, findings) in enumerate(kinds) if findings}
    assert choose(pairs, played, 2) == [0, 3]
    assert choose(pairs, played, 4) == [0, 4, 3, 5]
    assert sorted(choose(pairs, played, 9)) == [0, 1, 2, 3, 4, 5]
    assert choose(pairs, {}, 2) == [0, 2]


def test_the_stage_leaves_pictures_arrays_and_figures(explained):
    run, result = explained
    assert [path.name for path in result.pictures] == sorted(
        path.name for path in (run / "explain").glob("example-*.png")
    )
    assert (run / "explain" / "findings.png").exists()
    assert len(result.pictures) == 5
    assert all(pixels(path).std() > 1 for path in result.pictures)
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["pointing_game"] == result.pointing_game
    assert metrics["pointing_game"]["split"] == "test"
    with np.load(run / "explain" / "examples.npz") as file:
        assert file["word_maps"].shape[:2] == file["words"].shape
        assert set(file["modalities"]) == {"xray", "ct", "ultrasound", "mri"}
        names = file["expert_names"].tolist()
    assert names == ["xray", "ct", "mri", "ultrasound", "pathology", "fundus"]


def test_the_report_draws_what_the_stage_left(explained):
    run, result = explained
    text = write_report(run).read_text()
    assert f"<dt>Pointing game</dt><dd>{result.pointing_game['hit_rate']:.3f}<small>" in text
    assert text.count("<article") == 5
    assert "The stage zero-shot was not run" in text


def test_the_first_call_s_metrics_survive(explained, pretrained_run):
    before = json.loads((pretrained_run / "metrics.json").read_text())
    after = json.loads((explained[0] / "metrics.json").read_text())
    assert {key: value for key, value in after.items() if key != "pointing_game"} == before


def test_images_of_one_s_own_change_nothing_else(explained, tmp_path, capsys):
    run, _ = explained
    Image.fromarray(np.random.default_rng(0).integers(256, size=(40, 80, 3)).astype(np.uint8)).save(
        tmp_path / "a b.png"
    )
    before = (run / "metrics.json").read_bytes()
    result = explain.main(run, image=(tmp_path / "a b.png",), text="A kidney stone on the left.")
    assert [path.name for path in result.pictures] == ["own-00-a-b.png"]
    assert result.pointing_game is None
    assert (run / "metrics.json").read_bytes() == before
    assert "own-00-a-b.png" in capsys.readouterr().out


def test_a_run_that_routes_on_the_label_needs_it(session, split, monkeypatch):
    config = replace(session.config, model=replace(session.config.model, route_on="label"))
    by_label = replace(session, config=config)
    monkeypatch.setattr(session.model, "config", config.model)
    monkeypatch.setattr(session.model.moe, "router", LabelRouter(config.model.num_experts))
    seen = look(by_label, [replace(split[0], modality="mri")])[0]
    assert (seen.expert, seen.expert_probs[2]) == (2, 1)
    with pytest.raises(ValueError, match="needs the modality of every image"):
        look(by_label, [replace(split[0], modality=None)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 0}, "count must be at least 1, got 0"),
        ({"text": "a nodule"}, "image and text belong together"),
        ({"image": ("a.png",)}, "image and text belong together"),
    ],
)
def test_the_stage_refuses(pretrained_run, options, message):
    with pytest.raises(ValueError, match=message):
        explain.main(pretrained_run, **options)


def test_a_stream_cannot_be_explained(pretrained_run, monkeypatch):
    class Stream(PairStream):
        pass

    monkeypatch.setattr(Session, "source", lambda self: SimpleNamespace(train=Stream()))
    with pytest.raises(ValueError, match="split must be one that can be listed, got 'train', which is a stream"):
        explain.main(pretrained_run, split="train")


def test_pictures_of_studies_with_few_or_many_words(tmp_path):
    rng = np.random.default_rng(0)
    for words in (0, 1, 6):
        example = Explanation(
            id="s", text="word " * 60, modality=None, image=np.zeros((32, 32, 3), np.uint8), boxes=(),
            words=tuple(f"word{i}" for i in range(words)), maps=rng.random((words, 4, 4), np.float32),
            hits=np.full(words, np.nan, np.float32), scale_weights=np.full((4, 4, 4), 0.25, np.float32),
            expert_probs=np.array([0.5, 0.5], np.float32), expert=0,
        )  # fmt: skip
        height, width, _ = pixels(draw(example, ["a", "b"], tmp_path / f"{words}.png")).shape
        assert width == pytest.approx(height * PANEL * (max(words, 4) + 1) / (2 * PANEL + 0.9), abs=2)


def test_words_for_figures():
    assert [outcome(hit) for hit in (float("nan"), 1.0, 0.0, 0.5)] == ["", ": hit", ": miss", ": 50% hit"]
    assert scale_range(np.array([0.2, 0.6])) == pytest.approx((0.2, 0.6))
    assert scale_range(np.array([0.25, 0.25])) == pytest.approx((0.225, 0.275))
    assert shorten("a \n b") == "a b"
    assert re.fullmatch("x{119}…", shorten("x" * 300))
