"""Every stage takes a released model, on a run's own data, by the command line."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from recipes.medmoe.__main__ import main
from recipes.medmoe.inference.opening import open_session
from recipes.medmoe.inference.released import ReleasedSession
from recipes.medmoe.inference.run import Session
from recipes.medmoe.models.choice import RUN_ITSELF, ModelChoice
from recipes.shared.runs import read_json
from tests.recipes.medmoe.models.saved import CLIP_VIT, save_open_clip

pytest.importorskip("open_clip")


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "clip"
    save_open_clip(folder, CLIP_VIT)
    return folder


@pytest.fixture(scope="module")
def results(clip, pretrained_run, tmp_path_factory):
    """What the stages write for one model on the data of a run; only the first call names the model."""
    out = tmp_path_factory.mktemp("results") / "clip"
    named = ["--model", f"open_clip:{clip}", "--data-of", str(pretrained_run)]
    main(["zero-shot", str(out), "--set", "phantom-xray", "phantom-ct", "--bootstrap", "0", *named])
    main(["retrieve", str(out)])
    main(["probe", str(out), "--set", "phantom-xray", "--features", "both", "--subsets", "1"])
    main(["explain", str(out), "--count", "2", "--bootstrap", "0"])
    return out


def test_the_stages_write_what_they_write_for_a_run(results, clip):
    metrics = read_json(results / "metrics.json")
    assert set(metrics["zero_shot"]["sets"]) == {"phantom-xray", "phantom-ct"}
    one = read_json(results / "zero_shot" / "phantom-xray.json")
    assert (one["model"], one["route_on"], one["routing"]) == (f"open_clip:{clip}", "none", None)
    assert one["scale"] == pytest.approx(1 / 0.07, rel=1e-4)
    assert metrics["retrieval"]["model"] == f"open_clip:{clip}"
    probe = read_json(results / "probe" / "phantom-xray.json")
    assert probe["dim"] == 64 + 24  # the class token, and the mean region in the common space
    assert probe["routing"] is None
    assert metrics["pointing_game"]["rounds"] > 0
    arrays = np.load(results / "explain" / "examples.npz")
    assert arrays["word_maps"].shape[2:] == (4, 4)
    assert arrays["scale_weights"].shape[1] == 0
    assert len(list((results / "explain").glob("example-*.png"))) == 2
    kept = read_json(results / "model.json")
    assert kept["model"] == f"open_clip:{clip}"


def test_word_maps_are_the_cosines_of_words_and_regions(results):
    session = open_session(results, "best", RUN_ITSELF)
    assert isinstance(session, ReleasedSession)
    split = session.source().test
    images = session.images([session.picture(split, row) for row in range(2)])
    texts = session.texts([str(text) for text in split.texts[:2]])
    maps = session.word_maps(images, texts)
    region, word = images.maps[0][1, :, 2, 3].numpy(), texts.words[1, 0].numpy()
    expected = region @ word / np.linalg.norm(region) / np.linalg.norm(word)
    assert float(maps[1, 0, 2, 3]) == pytest.approx((1 + expected) / 2, abs=1e-5)
    assert len(session.words(str(split.texts[1]))) == int(texts.mask[1].sum())


def test_features_are_kept_until_the_weights_change(results, clip, tmp_path):
    session = open_session(results, "best", RUN_ITSELF)
    checksum = session.weights_checksum("best")
    assert open_session(results, "best", RUN_ITSELF).weights_checksum("best") == checksum
    session.model.model.logit_scale.data += 1
    session.model.notes = ("read this",)
    assert session.notes == ("read this",)
    assert session.weights_checksum("best") != checksum


def test_a_folder_belongs_to_one_model(results, clip, pretrained_run, tmp_path):
    with pytest.raises(ValueError, match="holds a pretrained run"):
        open_session(pretrained_run, "best", ModelChoice(f"open_clip:{clip}"))
    other = tmp_path / "other"
    shutil.copytree(clip, other)
    with pytest.raises(ValueError, match=f"holds results of open_clip:{clip}"):
        open_session(results, "best", ModelChoice(f"open_clip:{other}"))
    with pytest.raises(ValueError, match="--data-of belong to --model, which was not given"):
        open_session(pretrained_run, "best", ModelChoice(data_of=pretrained_run))
    assert isinstance(open_session(pretrained_run, "best", RUN_ITSELF), Session)


def test_what_a_released_model_lacks_is_said(clip, tmp_path):
    session = open_session(tmp_path / "out", "best", ModelChoice(f"open_clip:{clip}"))
    with pytest.raises(ValueError, match=r"no data of its own: name the run whose data are used \(--data-of RUN\)"):
        session.source()
    image = session.images([session.fit(np.zeros((40, 40), np.uint8))])
    with pytest.raises(ValueError, match=r"was not trained to compare words with regions.*--scoring mean"):
        session.word_region_scores(image, session.texts(["edema"]))
    (tmp_path / "out" / "model.json").write_text(json.dumps({"name": 1}))
    with pytest.raises(ValueError, match="lacks model"):
        open_session(tmp_path / "out", "best", RUN_ITSELF)


def test_few_shots_own_images_and_mean_maps(results, tmp_path):
    out = tmp_path / "clip"
    shutil.copytree(results, out)
    main(["few-shot", str(out), "--set", "phantom-ct", "--shots", "1", "--draws", "1"])
    assert read_json(out / "metrics.json")["few_shot"]["phantom-ct"]
    main(["explain", str(out), "--count", "1", "--bootstrap", "0", "--remove-mean"])
    assert read_json(out / "metrics.json")["pointing_game"]["mean_removed"]
    images = []
    for name, value in (("dark", 20), ("bright", 230)):
        images.append(str(tmp_path / f"{name}.png"))
        Image.fromarray(np.full((40, 50), value, np.uint8)).save(images[-1])
    table = tmp_path / "classes.csv"
    main(["classify", str(out), "--image", *images, "--classes", "dark", "bright", "--out", str(table)])
    assert table.read_text().count("\n") == 3
    index = tmp_path / "index.npz"
    main(["embed", str(out), "--image", *images, "--out", str(index)])
    found = tmp_path / "found.csv"
    main(["search", str(out), "--index", str(index), "--image", images[0], "--top", "2", "--out", str(found)])
    assert "dark.png" in found.read_text().splitlines()[1]


def test_the_report_of_a_released_model_leaves_out_training_and_experts(results, tmp_path, capsys):
    out = tmp_path / "clip"
    shutil.copytree(results, out)
    main(["report", str(out)])
    text = (out / "report.html").read_text(encoding="utf-8")
    assert "open_clip:clip · data: phantom-xray, phantom-ct" in text
    assert "What this model was trained on is not known here" in text
    assert "near-duplicates" not in text
    assert "not counted, since the pretraining images of a released model are not known" in text
    for title in ("Zero-shot classification", "Retrieval", "Linear probe", "Pointing game", "Attention examples"):
        assert f"<h2>{title}</h2>" in text
    for absent in ("<h2>Training</h2>", "Routing", "Epochs", "● chosen", "β of scale"):
        assert absent not in text


def test_a_damaged_folder_of_a_released_model_is_named(clip, tmp_path):
    open_session(tmp_path / "out", "best", ModelChoice(f"open_clip:{clip}"))
    with pytest.raises(SystemExit, match=r"metrics\.json: the file is missing"):
        main(["report", str(tmp_path / "out")])
    (tmp_path / "out" / "model.json").write_text("{}")
    with pytest.raises(SystemExit, match=r'model\.json: the field "model" is missing'):
        main(["report", str(tmp_path / "out")])
