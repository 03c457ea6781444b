"""Texts are never left out in silence: in training, and when findings are predicted."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from recipes.medvlmoe import predict, train
from recipes.medvlmoe.__main__ import parse_train
from recipes.medvlmoe.data import build_source

OPTIONS = (
    "--preset tiny --accelerator cpu --epochs 1 --batch-size 8 --image-size 32 --dim 32 --num-heads 2 --num-experts 2 "
    "--expert-hidden-dim 32 --label-columns sick"
)
SMALL = OPTIONS.split()


@pytest.fixture(scope="module")
def csv(tmp_path_factory):
    """Twelve images with notes in the column ``clinical``."""
    folder = tmp_path_factory.mktemp("notes")
    rows = ["image,clinical,split,sick"]
    for i in range(12):
        Image.fromarray(np.full((32, 32), 20 * i, np.uint8)).save(folder / f"{i}.png")
        note = f"patient {i} came with fever and a dry cough for some days"
        rows.append(f"{i}.png,{note},{('train', 'train', 'val', 'test')[i % 4]},{i // 4 % 2}")
    (folder / "set.csv").write_text("\n".join(rows) + "\n")
    return folder / "set.csv"


@pytest.fixture(scope="module")
def without_texts(csv):
    """A run on that table that reads no text."""
    out = csv.parent / "without"
    train.main(parse_train(["--data", str(csv), "--out", str(out), *SMALL]))
    return out


@pytest.fixture(scope="module")
def with_texts(csv):
    out = csv.parent / "with"
    train.main(parse_train(["--data", str(csv), "--out", str(out), "--text-column", "clinical", *SMALL]))
    return out


UNREAD = "column 'clinical' seems to hold texts, and no text is read"


def test_a_table_with_texts_of_which_no_column_is_named_says_so(csv):
    config = parse_train(["--data", str(csv), *SMALL]).data
    (note,) = [note for note in build_source(config, 32).notes if "texts" in note]
    assert note == f"{UNREAD}: pass --text-column 'clinical' to read it, or --no-use-text to leave it out"
    assert not any(UNREAD in note for note in build_source(replace(config, use_text=False), 32).notes)
    named = replace(config, manifest=replace(config.manifest, text_column="clinical"))
    assert not any(UNREAD in note for note in build_source(named, 32).notes)


def test_the_data_are_summed_up_before_training(csv, tmp_path, capsys):
    train.main(parse_train(["--data", str(csv), "--out", str(tmp_path / "run"), *SMALL, "--variant", "no-text"]))
    shown = capsys.readouterr().out
    before = shown[: shown.index("epoch   1/1")]
    assert "data: set, multi-label, 12 studies" in before
    assert UNREAD in before
    assert "note: --variant no-text reads no text" in before
    assert "positive: sick" in before


def test_a_text_for_a_run_without_texts_is_refused(csv, without_texts):
    image = [csv.parent / "3.png"]
    with pytest.raises(ValueError, match=r"trained without texts and reads none, so leave it out \(--text\)"):
        predict.main(without_texts, images=image, text="note")
    with pytest.raises(ValueError, match=r"text_column: .* reads none, so leave it out \(--text-column\)"):
        predict.main(without_texts, csv=csv, text_column="clinical")
    with pytest.warns(UserWarning, match=f"{UNREAD}: .* was trained without texts"):
        predict.main(without_texts, csv=csv)


def test_texts_of_a_table_are_read_by_the_column_that_is_named(csv, with_texts, tmp_path):
    rows = csv.read_text().replace("image,clinical", "picture,anamnesis")
    (csv.parent / "other.csv").write_text(rows)
    columns = {"image_column": "picture", "text_column": "anamnesis"}
    other = predict.main(with_texts, csv=csv.parent / "other.csv", **columns)
    assert other.equals(predict.main(with_texts, csv=csv))
    with pytest.raises(ValueError, match=r"image_column and text_column .* leave them out with images"):
        predict.main(with_texts, images=[csv.parent / "3.png"], **columns)


def test_a_blank_text_or_column_of_texts_is_said(csv, with_texts):
    with pytest.raises(ValueError, match="text is blank: leave it out"):
        predict.main(with_texts, images=[csv.parent / "3.png"], text="  ")
    (csv.parent / "blank.csv").write_text("image,clinical\n3.png,\n4.png,nan\n")
    with pytest.warns(UserWarning, match=r"blank\.csv: column 'clinical' is blank in every row"):
        predict.main(with_texts, csv=csv.parent / "blank.csv")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        predict.main(with_texts, csv=csv)


def test_texts_for_a_run_that_names_no_column_of_them_are_said_or_read(csv, trained_run):
    """A run on drawn data reads texts, and knows no column of a csv."""
    with pytest.warns(UserWarning, match=f"{UNREAD}: name it with --text-column 'clinical'"):
        without = predict.main(trained_run, csv=csv)
    read = predict.main(trained_run, csv=csv, text_column="clinical")
    assert not np.allclose(without.filter(like="prob:"), read.filter(like="prob:"), atol=1e-4)
