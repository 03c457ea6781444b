"""Evaluation images that the pretraining saw: counted by every stage, and left out on request."""

import io
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from recipes.data.pairs import BadSample, PairStream
from recipes.data.studies import Study
from recipes.medmoe import retrieve
from recipes.medmoe.config import Config
from recipes.medmoe.data.sources import build_source
from recipes.medmoe.few_shot import stage as few_shot
from recipes.medmoe.inference import near_duplicates
from recipes.medmoe.inference.near_duplicates import keep_prints, without_near_duplicates
from recipes.medmoe.inference.run import Session
from recipes.medmoe.probe import stage as probe
from recipes.medmoe.zero_shot import stage as zero_shot
from recipes.shared.runs import read_json, write_json
from recipes.shared.settings import read_settings


@pytest.fixture(scope="module")
def run_with_prints(pretrained_run, tmp_path_factory):
    run = shutil.copytree(pretrained_run, tmp_path_factory.mktemp("near") / "run")
    keep_prints(run)
    return run


@pytest.fixture
def run(run_with_prints, tmp_path):
    return shutil.copytree(run_with_prints, tmp_path / "run")


@pytest.fixture(scope="module")
def table(pretrained_run, tmp_path_factory):
    """Eight test images: a copy of the first training image, the second darker, larger and compressed, six others."""
    folder = tmp_path_factory.mktemp("table")
    train = build_source(read_settings(Config, pretrained_run)).train
    darker, file = Image.fromarray(train[1].image).resize((128, 128)).point(lambda value: value * 0.7), io.BytesIO()
    darker.save(file, "JPEG", quality=70)
    rng = np.random.default_rng(0)
    others = [
        Image.fromarray(rng.integers(0, 256, (5, 5), dtype=np.uint8)).resize((64, 64), Image.Resampling.BICUBIC)
        for _ in range(22)
    ]
    images = [Image.fromarray(train[0].image), Image.open(file), *others]
    rows = ["image,kind,patient,split"]
    for number, image in enumerate(images):
        image.save(folder / f"{number}.png")
        split = "test" if number < 8 else ("train", "val")[number % 2]
        rows.append(f"{number}.png,{('dark', 'bright')[number // 2 % 2]},p{number},{split}")
    (folder / "mine.csv").write_text("\n".join(rows) + "\n")
    return folder / "mine.csv"


OPTIONS = ("image_column=image", "label_column=kind", "group_column=patient", "split_column=split")


def test_zero_shot_counts_them_and_leaves_them_out(run, table, capsys):
    how = {"csv": table, "options": OPTIONS, "templates": True, "modality": "ct", "bootstrap": 0}
    zero_shot.main(run, **how)
    result = read_json(run / "zero_shot" / "mine.json")
    overlap = result["near_duplicates"]
    assert (overlap["equal"], overlap["nearly_equal"], overlap["left_out"]) == (1, 1, 0)
    assert (overlap["images"], overlap["pretraining_images"], result["studies"]) == (8, 48, 8)
    train = build_source(read_settings(Config, run)).train
    assert [one["pretraining_id"] for one in overlap["examples"]] == [train.ids[0], train.ids[1]]
    assert [one["id"] for one in overlap["examples"]] == ["0.png", "1.png"]
    assert overlap["examples"][0]["similarity"] == 1 > overlap["examples"][1]["similarity"] > 0.99
    assert read_json(run / "metrics.json")["zero_shot"]["sets"]["mine"]["near_duplicates"] == overlap
    assert "near-duplicates: of 8 images 1 are equal and 1 nearly equal" in capsys.readouterr().out

    zero_shot.main(run, near_duplicates="leave-out", **how)
    result = read_json(run / "zero_shot" / "mine.json")
    assert (result["near_duplicates"]["left_out"], result["studies"]) == (2, 6)
    assert "pretraining images, and left out" in capsys.readouterr().out

    zero_shot.main(run, near_duplicates="ignore", **how)
    result = read_json(run / "zero_shot" / "mine.json")
    assert (result["near_duplicates"], result["studies"]) == (None, 8)


def test_the_test_splits_of_probe_and_few_shot_are_compared(run, table):
    how = {"csv": table, "options": OPTIONS, "near_duplicates": "leave-out"}
    section = probe.main(run, fractions=(1.0,), **how)["mine"]
    assert (section["near_duplicates"]["left_out"], section["studies"]["test"]) == (2, 6)
    section = few_shot.main(run, shots=(1,), draws=1, methods=("prototypes",), templates=True, **how)["mine"]
    assert (section["near_duplicates"]["left_out"], section["studies"]["test"]) == (2, 6)


def test_retrieval_compares_the_images_of_its_split(run, capsys):
    result = retrieve.main(run)
    assert result["near_duplicates"]["pretraining_images"] == 48
    assert result["near_duplicates"]["images"] == 40
    assert "near-duplicates: " in capsys.readouterr().out
    assert retrieve.main(run, split="train")["near_duplicates"] is None
    with pytest.raises(ValueError, match="all 48 images of train are near-duplicates of pretraining images"):
        retrieve.main(run, split="train", near_duplicates="leave-out")


def test_a_run_without_prints_says_so_and_makes_them_where_they_are_needed(pretrained_run, tmp_path):
    run = shutil.copytree(pretrained_run, tmp_path / "run")
    session = Session.open(run)
    split = session.source().val
    same, overlap = without_near_duplicates(session, split, "val", "count")
    assert same is split
    assert overlap["in_words"].startswith("not counted, since the run keeps no prints of its pretraining images")
    _, overlap = without_near_duplicates(session, split, "val", "leave-out")
    assert overlap["pretraining_images"] == 48
    assert without_near_duplicates(session, split, "val", "count")[1]["images"] == 24


def test_prints_of_a_table_are_kept_until_an_image_changes(run, table, tmp_path, monkeypatch):
    folder = shutil.copytree(table.parent, tmp_path / "copy")
    how = {"csv": folder / "mine.csv", "options": OPTIONS, "templates": True, "modality": "ct", "bootstrap": 0}
    zero_shot.main(run, **how)
    read = []
    whole = near_duplicates.read_prints
    monkeypatch.setattr(near_duplicates, "read_prints", lambda *a, **k: read.append(1) or whole(*a, **k))
    zero_shot.main(run, **how)
    assert not read
    shutil.copy(folder / "5.png", folder / "0.png")
    zero_shot.main(run, **how)
    assert read
    assert read_json(run / "zero_shot" / "mine.json")["near_duplicates"]["equal"] == 0


def test_a_stream_is_read_once_where_its_images_are_to_be_left_out(run, monkeypatch):
    session = Session.open(run)
    source = session.source()
    shutil.rmtree(run / "prints")
    data = read_json(run / "data.json")
    write_json(run / "data.json", {name: data[name] for name in ("val", "test")})

    class Stream(PairStream):
        def iterate(self, *, seed=0):
            yield BadSample("x.tar: 1", "cut off")
            yield from (source.val[row] for row in range(3))

    monkeypatch.setattr(Session, "source", lambda self: replace(source, train=Stream()))
    _, overlap = without_near_duplicates(session, source.val, "val", "count")
    assert "unknown" in overlap
    left, overlap = without_near_duplicates(session, source.val, "val", "leave-out")
    assert (overlap["pretraining_images"], overlap["equal"], len(left)) == (3, 3, 21)
    assert left.ids == list(source.val.ids[3:])
    study = left[0]
    assert isinstance(study, Study)
    assert study.id == left.ids[0]
    assert list(left.modalities) == list(source.val.modalities[3:])


def test_a_released_model_has_no_known_pretraining_images(tmp_path):
    class Released:
        run = tmp_path

    _, overlap = without_near_duplicates(Released(), [], "test", "count")
    assert overlap["in_words"] == "not counted, since the pretraining images of a released model are not known"
    with pytest.raises(ValueError, match=r"\(--near-duplicates\): no image can be left out, since the pretraining"):
        without_near_duplicates(Released(), [], "test", "leave-out")
