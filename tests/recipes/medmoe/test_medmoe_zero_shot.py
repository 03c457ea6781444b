import json
import shutil
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from recipes.data.evaluation.types import EvaluationSet
from recipes.data.studies import Study
from recipes.medmoe.build import new_model
from recipes.medmoe.config import Config
from recipes.medmoe.data.labelled_sets import open_sets, parse_options
from recipes.medmoe.features import TextFeatures
from recipes.medmoe.inference.local_scoring import mean_regions, modality_labels, routed_local_scores
from recipes.medmoe.inference.reference import load_reference
from recipes.medmoe.inference.run import Session
from recipes.medmoe.zero_shot import stage as zero_shot
from recipes.medmoe.zero_shot.evaluation import evaluate_set
from recipes.medmoe.zero_shot.prompt_files import choose_prompts, parse_prompts
from recipes.medmoe.zero_shot.prompt_scores import score_prompts
from recipes.medmoe.zero_shot.scale import FEWEST
from recipes.medmoe.zero_shot.scoring import LOCAL_WEIGHT
from recipes.shared.runs import read_json

CLASSES = ("dark", "bright")
PROMPTS = parse_prompts(
    {
        "classes": {"dark": ["a dark image", "clear lungs"], "bright": ["a bright image"]},
        "absent": {"dark": ["nothing dark"], "bright": ["nothing bright", "not bright"]},
    },
    "mine",
)


@dataclass
class Pictures:
    """Images held in memory, two of a patient."""

    images: list
    labels: np.ndarray
    modalities: tuple

    def __post_init__(self):
        self.ids = [f"study {row}" for row in range(len(self))]
        self.groups = [f"patient {row // 2}" for row in range(len(self))]
        self.texts = [None] * len(self)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, row):
        return Study(self.ids[row], self.groups[row], self.images[row], None, self.labels[row])


def picture_set(count=12, task="binary-class", modality="ct", modalities=None):
    rng = np.random.default_rng(0)
    truth = np.arange(count) % 2
    images = [(rng.integers(0, 100, (32, 32)) + 150 * label).astype(np.uint8) for label in truth]
    split = Pictures(images, np.eye(2, dtype=np.float32)[truth], modalities or (modality,) * count)
    return EvaluationSet("pictures", task, CLASSES, modality, {"test": split})


def session_of(run, **model):
    """An untrained model with the settings of the run, but for some."""
    config = Config.from_json(read_json(run / "config.json"))
    config = replace(config, model=replace(config.model, **model))
    torch.manual_seed(0)
    built = new_model(config, 5 * ["a dark image", "a bright image", "clear lungs", "nothing"])
    return Session(run, config, built.eval().requires_grad_(False), torch.device("cpu"))


@pytest.fixture(scope="module", params=["image", "text", "label"])
def session(request, pretrained_run):
    return session_of(pretrained_run, route_on=request.param)


@pytest.fixture
def run(pretrained_run, tmp_path):
    return shutil.copytree(pretrained_run, tmp_path / "run")


def test_a_call_writes_results_and_adds_to_the_metrics(run, capsys):
    section = zero_shot.main(run, set=("phantom-ct",), bootstrap=20, count=2, seed=5)
    printed = capsys.readouterr().out
    assert "phantom-ct: " in printed
    assert "(chance 0.250, most frequent class 0." in printed
    assert "% of the words of the prompts (" in printed
    assert f"next: python -m recipes.medmoe retrieve {run}" in printed
    first = read_json(run / "zero_shot" / "phantom-ct.json")
    assert section == read_json(run / "metrics.json")["zero_shot"]
    assert section["accuracy"] == first["accuracy"] == section["sets"]["phantom-ct"]["accuracy"]
    assert section["mean_over"] == ["phantom-ct"]
    assert (first["scoring"], first["route_on"], first["seed"], first["count"]) == ("mean", "image", 5, 2)
    assert all(len(texts) == 2 for texts in first["prompts"]["classes"].values())
    assert sum(first["routing"]["counts"]) == first["studies"] == sum(map(sum, first["confusion"]["matrix"]))
    assert first["routing_matters"] is False
    assert 0 < first["unknown_words"]["share"] < 1
    assert section["sets"]["phantom-ct"]["unknown_words"]["unknown"] == first["unknown_words"]["unknown"]
    assert section["balanced_accuracy"] == first["balanced_accuracy"]

    every = zero_shot.main(run, bootstrap=0)
    assert list(every["sets"]) == ["phantom-ct", "phantom-xray", "phantom-ultrasound", "phantom-mri"]
    assert every["mean_over"] == ["phantom-xray", "phantom-ct", "phantom-ultrasound", "phantom-mri"]
    assert every["accuracy"] == pytest.approx(np.mean([one["accuracy"] for one in every["sets"].values()]))
    assert every["chance"] == 0.25

    last = zero_shot.main(run, set=("phantom-mri",), bootstrap=0, scoring="gloria")
    assert last["mean_over"] == ["phantom-mri"]
    assert last["sets"]["phantom-xray"] == every["sets"]["phantom-xray"]
    assert last["sets"]["phantom-mri"]["scoring"] == "gloria"
    metrics = read_json(run / "metrics.json")
    assert "routing_purity" in metrics
    assert metrics["zero_shot"]["scoring"] == "gloria"


def test_a_table_with_prompts_of_its_own(run, tmp_path):
    from PIL import Image

    rows = ["file,kind,patient"]
    for row in range(6):
        Image.fromarray(np.full((40, 40), 40 * row, np.uint8)).save(tmp_path / f"{row}.png")
        rows.append(f"{row}.png,{CLASSES[row % 2]},p{row // 2}")
    (tmp_path / "mine.csv").write_text("\n".join(rows))
    prompts = tmp_path / "mine.json"
    prompts.write_text(json.dumps(PROMPTS.to_json()))
    options = ("image-column=file", "label_column=kind", "group_column=patient")
    arguments = {"csv": tmp_path / "mine.csv", "options": options, "bootstrap": 10}
    with pytest.raises(ValueError, match=r"the set mine has no prompt file of its own\. .* \(bright, dark\)"):
        zero_shot.main(run, **arguments)
    assert not (run / "zero_shot").exists()
    zero_shot.main(run, prompts=str(prompts), scoring="pairs", **arguments)
    result = read_json(run / "zero_shot" / "mine.json")
    assert result["prompts"] == {"file": str(prompts)} | PROMPTS.to_json()
    assert (result["studies"], result["groups"], result["classes"]) == (6, 3, ["bright", "dark"])
    zero_shot.main(run, templates=True, **arguments)
    assert read_json(run / "zero_shot" / "mine.json")["prompts"]["file"] == "templates"

    some = arguments | {"options": (*options, "only=patient=p0"), "templates": True}
    with pytest.raises(ValueError, match=r"mine\.json holds the result of .*mine\.csv with options .*\(--name\)"):
        zero_shot.main(run, **some)
    section = zero_shot.main(run, **some, name="first-patient")
    assert section["mean_over"] == ["first-patient"]
    assert section["sets"]["mine"]["studies"] == 6
    assert read_json(run / "zero_shot" / "first-patient.json")["studies"] == 2
    by_option = arguments | {"options": (*options, "name=third"), "templates": True}
    assert zero_shot.main(run, **by_option)["mean_over"] == ["third"]
    with pytest.raises(ValueError, match=r"name must be of letters, .* got '\.\./up' \(--name\)"):
        zero_shot.main(run, **some, name="../up")
    with pytest.raises(ValueError, match=r"name is for one set, got 4 sets"):
        zero_shot.main(run, name="all")


def test_scores_are_the_cosines_of_the_embeddings(session):
    one = picture_set()
    result = evaluate_set(session, one, PROMPTS, bootstrap=30, scoring="mean")
    image = torch.cat([image.embedding for _, image in session.image_batches(one.splits["test"])])
    dark = session.texts(["a dark image", "clear lungs"]).embedding.mean(0)
    bright = session.texts(["a bright image"]).embedding[0]
    scores = torch.stack([image @ (dark / dark.norm()), image @ bright], dim=1)
    truth = torch.arange(12) % 2
    assert result["accuracy"] == pytest.approx((scores.argmax(1) == truth).float().mean().item())
    assert result["accuracy_ci95"][0] <= result["accuracy"] <= result["accuracy_ci95"][1]
    assert result["majority_share"] == result["chance"] == 0.5
    assert result["balanced_accuracy"] == pytest.approx(result["accuracy"])  # six studies of each class
    assert result["kappa"] == pytest.approx(2 * result["accuracy"] - 1)
    assert result["kappa_ci95"][0] <= result["kappa"] <= result["kappa_ci95"][1]
    assert result["macro_f1"] == pytest.approx(sum(one["f1"] for one in result["per_class"].values()) / 2)
    assert result["per_class"]["dark"]["recall"] == result["confusion"]["matrix"][0][0] / 6
    assert result["scale"] == session.config.model.temperatures[2]
    assert result["groups"] == 6


def test_classes_in_another_order_give_the_same_result(session):
    one = picture_set()
    split = one.splits["test"]
    turned = replace(
        one,
        classes=CLASSES[::-1],
        splits={"test": Pictures(split.images, split.labels[:, ::-1].copy(), split.modalities)},
    )
    for scoring in ("mean", "max", "pairs", "gloria"):
        result = [evaluate_set(session, s, PROMPTS, scoring=scoring, bootstrap=0) for s in (one, turned)]
        assert result[0]["accuracy"] == result[1]["accuracy"], scoring
        assert result[0]["macro_auroc"] == pytest.approx(result[1]["macro_auroc"])


def test_the_result_names_what_was_routed(session):
    one = picture_set()
    by = session.model.config.route_on
    routing = evaluate_set(session, one, PROMPTS, scoring="gloria", bootstrap=0)["routing"]
    assert (routing["by"], routing["of"]) == (by, "prompts" if by == "text" else "images")
    assert sum(routing["counts"]) == (3 if by == "text" else 12)
    assert routing["experts"] == list(session.modalities)
    if by == "label":
        assert routing["counts"][session.modalities.index("ct")] == 12


def test_local_scores_by_text_are_those_of_each_text_alone(pretrained_run):
    texts = ["a dark image", "a bright image", "nothing", "clear lungs", "clear"]
    pictures = picture_set().splits["test"]
    for gradient in ("none", "scale"):
        session = session_of(pretrained_run, route_on="text", router_gradient=gradient)
        text = session.texts(texts)
        image = session.images([session.picture(pictures, row) for row in range(4)])
        # An untrained router hardly tells texts apart: spread them out by hand.
        text = text._replace(pooled=torch.randn(text.pooled.shape, generator=torch.Generator().manual_seed(0)))
        scores = routed_local_scores(session, image, text)
        routing = session.model.route(text=text)
        assert len(set(routing.expert_ids.flatten().tolist())) > 1
        for row in range(len(texts)):
            alone = TextFeatures(*(field[row : row + 1] for field in text))
            repeated = TextFeatures(*(field.expand(4, *field.shape[1:]) for field in alone))
            local = session.model.local(image, session.model.route(text=repeated))
            torch.testing.assert_close(scores[:, row], session.word_region_scores(local, alone)[:, 0])


def test_an_unknown_kind_matters_only_to_local_scores_by_label(pretrained_run):
    unknown = picture_set(modality=None, modalities=(None,) * 12)
    session = session_of(pretrained_run, route_on="label")
    assert evaluate_set(session, unknown, PROMPTS, bootstrap=0)["routing"] is None
    with pytest.raises(ValueError, match=r"which is not known for 12 of 12 images\. Give modality, one of xray, ct"):
        evaluate_set(session, unknown, PROMPTS, scoring="gloria", bootstrap=0)
    by_kind = evaluate_set(session, unknown, PROMPTS, scoring="gloria", bootstrap=0, modality="mri")
    assert by_kind["modality"] == "mri"
    assert by_kind["routing"]["counts"][session.modalities.index("mri")] == 12


def test_images_may_name_their_own_kinds(pretrained_run):
    mixed = picture_set(modality=None, modalities=("ct", "mri") * 6)
    session = session_of(pretrained_run, route_on="label")
    routing = evaluate_set(session, mixed, PROMPTS, scoring="gloria", bootstrap=0)["routing"]
    assert [routing["counts"][session.modalities.index(kind)] for kind in ("ct", "mri")] == [6, 6]
    with pytest.raises(ValueError, match="the run has no expert for echo; it has experts for xray, ct"):
        modality_labels(session, mixed.splits["test"], "echo")
    image = session.images([session.picture(mixed.splits["test"], row) for row in range(2)])
    labels = modality_labels(session, mixed.splits["test"], None)[:2]
    assert not torch.allclose(mean_regions(session, image, labels), mean_regions(session, image, labels.flip(0)))


def test_multi_label_sets_have_no_accuracy(pretrained_run):
    session = session_of(pretrained_run, route_on="image")
    result = evaluate_set(session, picture_set(task="multi-label"), PROMPTS, scoring="pairs", bootstrap=5)
    assert result["accuracy"] is result["chance"] is result["confusion"] is result["majority_share"] is None
    assert result["macro_auroc"] is not None
    section = zero_shot.headline({"pictures": result}, {})
    assert section["accuracy"] is section["chance"] is None
    assert section["macro_auroc"] == result["macro_auroc"]


def test_random_pictures_score_at_chance(pretrained_run):
    rng = np.random.default_rng(0)
    images = list(rng.integers(0, 255, (160, 16, 16), dtype=np.uint8))
    labels = np.eye(2, dtype=np.float32)[rng.integers(2, size=160)]
    one = EvaluationSet("noise", "binary-class", CLASSES, "ct", {"test": Pictures(images, labels, ("ct",) * 160)})
    result = evaluate_set(session_of(pretrained_run), one, PROMPTS, bootstrap=200)
    assert result["macro_auroc_ci95"][0] < 0.5 < result["macro_auroc_ci95"][1]


def test_what_does_not_fit_is_refused(pretrained_run):
    session = session_of(pretrained_run)
    one = picture_set()
    with pytest.raises(ValueError, match="split: the set pictures has no val split, it has test"):
        evaluate_set(session, one, PROMPTS, split="val")
    bare = choose_prompts(parse_prompts({"classes": {"dark": ["d"], "bright": ["b"]}}, "bare"))
    with pytest.raises(ValueError, match=r"texts against each class, but 'bare' has none for \['dark', 'bright'\]"):
        evaluate_set(session, one, bare, scoring="pairs")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"names": ("phantom-ct", "phantom-ct")}, "set must name each set once"),
        ({"names": ("phantom-pet",)}, "there is no phantom-pet; the phantom sets are phantom-xray, phantom-ct"),
        ({"names": ("phantom-ct", "busi")}, "phantom sets and sets on disk go into calls of their own"),
        ({"root": "."}, "set must name what to open, one of chexpert5x200, .* got none"),
        ({"options": ("plane=axial",)}, "when root or options are given"),
        ({"names": ("busi",), "csv": "a.csv"}, "csv is a set of its own and goes without set and root"),
        ({"names": ("nothing",)}, r"--set must be one of chexpert5x200"),
    ],
)
def test_sets_that_do_not_exist_are_refused(pretrained_run, arguments, message):
    with pytest.raises(ValueError, match=message):
        open_sets(Session.open(pretrained_run), **arguments)


def test_other_data_than_phantoms_need_a_named_set(pretrained_run):
    session = session_of(pretrained_run)
    other = replace(session.config, data=replace(session.config.data, data="mine.csv"))
    with pytest.raises(ValueError, match=r"the run was trained on mine.csv, which has no phantom sets"):
        open_sets(replace(session, config=other))


def test_options_are_read_as_what_they_look_like():
    options = ("label-column=diagnosis", "size=64", "download=True", "fold=None", "only=a=b,c=d", "fractions=0.5,0.5")
    assert parse_options(options) == {
        "label_column": "diagnosis",
        "size": 64,
        "download": True,
        "fold": None,
        "only": ("a=b", "c=d"),
        "fractions": (0.5, 0.5),
    }
    with pytest.raises(ValueError, match="expected name=value, got 'size'"):
        parse_options(["size"])
    with pytest.raises(ValueError, match="options: size is given twice"):
        parse_options(["size=1", "size=2"])


def test_a_combined_score_needs_an_expert_of_each_image(pretrained_run):
    with pytest.raises(ValueError, match=r"scoring='combined' needs the expert of each image.*--scoring"):
        evaluate_set(session_of(pretrained_run, route_on="text"), picture_set(), PROMPTS, scoring="combined")


def test_a_combined_score_depends_on_no_other_image(run):
    session = Session.open(run)
    split = picture_set().splits["test"]
    arguments = {"task": "multi-class", "scoring": "combined", "kind": "ct", "title": None}
    every = score_prompts(session, split, PROMPTS, **arguments).scores
    alone = score_prompts(session, Pictures(split.images[:1], split.labels[:1], ("ct",)), PROMPTS, **arguments).scores
    assert alone.scores == pytest.approx(every.scores[:1], abs=1e-4)


def test_a_combined_score_is_the_formula(run):
    session, split = Session.open(run), picture_set(count=4).splits["test"]
    scores, embedded, *_ = score_prompts(
        session, split, PROMPTS, task="multi-class", scoring="combined", kind="ct", title=None
    )
    reference = load_reference(session, "best")
    texts = [text for name in CLASSES for text in PROMPTS.classes[name]]
    text, dark = session.texts(texts), slice(0, 2)
    known = reference.embeddings @ text.embedding[dark].mean(0) / text.embedding[dark].mean(0).norm()
    local = session.word_region_scores(reference.local, text)[:, dark].mean(1)
    expected = []
    for row, expert in enumerate(embedded.experts):
        own = reference.experts == expert
        own = torch.tensor(own if own.sum() >= FEWEST else np.ones(len(own), bool))
        cosine = embedded.images[row] @ embedded.prompts[dark].mean(0) / np.linalg.norm(embedded.prompts[dark].mean(0))
        z_cosine = (cosine - known[own].mean()) / known[own].std(correction=0)
        z_local = (embedded.local[row, dark].mean() - local[own].mean()) / local[own].std(correction=0)
        expected.append(float((1 - LOCAL_WEIGHT) * z_cosine + LOCAL_WEIGHT * z_local))
    assert scores.scores[:, 0] == pytest.approx(expected, abs=2e-2)  # regions are kept in half precision


def test_a_reference_is_kept_for_the_weights_that_made_it(run, monkeypatch):
    session, path = Session.open(run), run / "reference" / "best.npz"
    kept = load_reference(session, "best")
    assert set(kept.experts) <= set(range(session.config.model.num_experts))
    monkeypatch.setattr(Session, "source", lambda self: pytest.fail("the data are not needed"))
    again = load_reference(session, "best")
    assert torch.equal(again.local.regions, kept.local.regions)
    monkeypatch.undo()
    made = path.stat().st_mtime_ns
    monkeypatch.setattr(Session, "weights_checksum", lambda self, checkpoint: "other weights")
    load_reference(session, "best")
    assert path.stat().st_mtime_ns > made


def test_the_spread_over_halves_of_the_prompts(pretrained_run):
    session, one = session_of(pretrained_run), picture_set()
    many = parse_prompts(
        {"classes": {"dark": ["a", "dark", "image", "clear"], "bright": ["bright", "nothing"]}}, "many"
    )
    result = evaluate_set(session, one, many, bootstrap=0)
    spread = result["prompt_spread"]
    assert spread["subsets"] == 20
    for name in ("accuracy", "balanced_accuracy", "macro_auroc"):
        assert spread[name]["min"] <= spread[name]["mean"] <= spread[name]["max"]
    assert spread == evaluate_set(session, one, many, bootstrap=0)["prompt_spread"]
    halves = [
        evaluate_set(
            session, one, parse_prompts({"classes": {"dark": [*dark], "bright": [bright]}}, "half"), bootstrap=0
        )
        for dark in (
            ("a", "dark"),
            ("a", "image"),
            ("a", "clear"),
            ("dark", "image"),
            ("dark", "clear"),
            ("image", "clear"),
        )
        for bright in ("bright", "nothing")
    ]
    assert spread["accuracy"]["min"] >= min(half["accuracy"] for half in halves) - 1e-9
    assert spread["accuracy"]["max"] <= max(half["accuracy"] for half in halves) + 1e-9
    single = parse_prompts({"classes": {"dark": ["dark"], "bright": ["bright"]}}, "single")
    assert evaluate_set(session, one, single, bootstrap=0)["prompt_spread"] is None


def test_a_combined_score_by_some_prompts_is_that_of_these_prompts_alone(run):
    session, split = Session.open(run), picture_set(count=4).splits["test"]
    arguments = {"task": "multi-class", "scoring": "combined", "kind": "ct", "title": None}
    many = parse_prompts({"classes": {"dark": ["a", "dark image", "clear"], "bright": ["bright", "nothing"]}}, "many")
    few = parse_prompts({"classes": {"dark": ["dark image", "clear"], "bright": ["bright"]}}, "few")
    scored = score_prompts(session, split, many, **arguments)
    assert [own.tolist() for own in scored.rows] == [[0, 1, 2], [3, 4]]
    by_some = scored.by_rows([np.array([1, 2]), np.array([3])])
    assert by_some.scores == pytest.approx(score_prompts(session, split, few, **arguments).scores.scores, abs=1e-4)
    assert abs(by_some.scores - scored.scores.scores).max() > 1e-3
    assert evaluate_set(session, picture_set(), many, scoring="combined", bootstrap=0)["prompt_spread"]["subsets"] == 20
