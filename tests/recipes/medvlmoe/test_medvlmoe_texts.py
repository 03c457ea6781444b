"""Texts are never left out in silence: in training, and when findings are predicted."""

import warnings
from dataclasses import replace

import numpy as np
import pytest

from recipes.medvlmoe import predict, train
from recipes.medvlmoe.__main__ import parse_train
from recipes.medvlmoe.sources import build_source
from tests.recipes.medvlmoe.conftest import SMALL


@pytest.fixture(scope="module")
def with_texts(note_table):
    out = note_table.parent / "with"
    train.main(parse_train(["--data", str(note_table), "--out", str(out), "--text-column", "clinical", *SMALL]))
    return out


UNREAD = "column 'clinical' seems to hold texts, and no text is read"


def test_a_table_with_texts_of_which_no_column_is_named_says_so(note_table):
    config = parse_train(["--data", str(note_table), *SMALL]).data
    (note,) = [note for note in build_source(config, 32).notes if "texts" in note]
    assert note == f"{UNREAD}: pass --text-column 'clinical' to read it, or --no-use-text to leave it out"
    assert not any(UNREAD in note for note in build_source(replace(config, use_text=False), 32).notes)
    named = replace(config, manifest=replace(config.manifest, text_column="clinical"))
    assert not any(UNREAD in note for note in build_source(named, 32).notes)


def test_the_data_are_summed_up_before_training(note_table, tmp_path, capsys):
    train.main(parse_train(["--data", str(note_table), "--out", str(tmp_path / "run"), *SMALL, "--variant", "no-text"]))
    shown = capsys.readouterr().out
    before = shown[: shown.index("epoch   1/1")]
    assert "data: set, multi-label, 12 studies" in before
    assert UNREAD in before
    assert "note: --variant no-text reads no text" in before
    assert "positive: sick" in before


def test_a_text_for_a_run_image_run_is_refused(note_table, image_run):
    image = [note_table.parent / "3.png"]
    with pytest.raises(ValueError, match=r"trained without texts and reads none, so leave it out \(--text\)"):
        predict.main(image_run, images=image, text="note")
    with pytest.raises(ValueError, match=r"text_column: .* reads none, so leave it out \(--text-column\)"):
        predict.main(image_run, csv=note_table, text_column="clinical")
    with pytest.warns(UserWarning, match=f"{UNREAD}: .* was trained without texts"):
        predict.main(image_run, csv=note_table)


def test_texts_of_a_table_are_read_by_the_column_that_is_named(note_table, with_texts, tmp_path):
    rows = note_table.read_text().replace("image,clinical", "picture,anamnesis")
    (note_table.parent / "other.csv").write_text(rows)
    columns = {"image_column": "picture", "text_column": "anamnesis"}
    other = predict.main(with_texts, csv=note_table.parent / "other.csv", **columns)
    assert other.equals(predict.main(with_texts, csv=note_table))
    with pytest.raises(ValueError, match=r"image_column and text_column .* leave them out with images"):
        predict.main(with_texts, images=[note_table.parent / "3.png"], **columns)


def test_a_blank_text_or_column_of_texts_is_said(note_table, with_texts):
    with pytest.raises(ValueError, match="text is blank: leave it out"):
        predict.main(with_texts, images=[note_table.parent / "3.png"], text="  ")
    (note_table.parent / "blank.csv").write_text("image,clinical\n3.png,\n4.png,nan\n")
    with pytest.warns(UserWarning, match=r"blank\.csv: column 'clinical' is blank in every row"):
        predict.main(with_texts, csv=note_table.parent / "blank.csv")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        predict.main(with_texts, csv=note_table)


def test_texts_for_a_run_that_names_no_column_of_them_are_said_or_read(note_table, trained_run):
    """A run on drawn data reads texts, and knows no column of a csv."""
    with pytest.warns(UserWarning, match=f"{UNREAD}: name it with --text-column 'clinical'"):
        without = predict.main(trained_run, csv=note_table)
    read = predict.main(trained_run, csv=note_table, text_column="clinical")
    assert not np.allclose(without.filter(like="prob:"), read.filter(like="prob:"), atol=1e-4)
