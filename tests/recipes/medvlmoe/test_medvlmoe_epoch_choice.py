"""Which classes choose the epoch: those that more than one validation patient has, and lacks."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from recipes.medvlmoe import train, validate
from recipes.medvlmoe.config import DataConfig, ManifestConfig
from recipes.medvlmoe.validate import choice_note, classes_of_choice, score
from tests.recipes.medvlmoe.conftest import small_config

NAN = float("nan")
# Patients p, q and r; the classes are decided by three patients, by one that has it, one that lacks it, and by nothing.
GROUPS = ("p", "p", "q", "r", "s")
LABELS = np.array([[1, 1, 1, NAN], [0, 1, 1, NAN], [1, 0, 1, 1], [0, 0, 0, NAN], [NAN, NAN, NAN, NAN]], np.float32)


def test_a_class_of_one_patient_has_no_say():
    assert classes_of_choice(LABELS, GROUPS) == [True, False, False, False]
    # Without patients each study counts.
    assert classes_of_choice(LABELS, list("abcde")) == [True, True, False, False]


def test_the_note_names_the_classes_and_what_chooses_instead():
    names = ("A", "B", "C", "D")
    split = SimpleNamespace(labels=LABELS, groups=GROUPS)
    assert choice_note(split, names) == (
        "note: fewer than 2 validation patients have, or lack, B, C, D: the epoch is chosen by the validation AUROC of "
        "the other classes."
    )
    assert choice_note(SimpleNamespace(labels=LABELS[:, :1], groups=GROUPS), names[:1]) == ""
    alone = choice_note(SimpleNamespace(labels=LABELS[:, 1:2], groups=GROUPS), names[1:2])
    assert alone.endswith("have, or lack, B: the epoch is chosen by the validation loss.")


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"val_macro_auroc": 0.7}, 0.7),
        ({"val_macro_auroc": 0.7, "val_selection_auroc": 0.6}, 0.6),
        ({"val_macro_auroc": 0.7, "val_selection_auroc": None}, -0.5),
        ({"val_macro_auroc": None}, -0.5),
        ({}, -0.5),
    ],
)
def test_what_epochs_are_compared_by(record, expected):
    assert score({"val_loss": 0.5, "train_loss": 0.9, **record}) == expected


def test_the_choosing_auroc_leaves_classes_out_and_is_there_only_where_some_are():
    aurocs = {"A": 0.8, "B": 0.2, "C": None, "D": 0.6}
    assert validate._auroc_of_choice(aurocs, [True, False, False, True]) == {"val_selection_auroc": pytest.approx(0.7)}
    assert validate._auroc_of_choice(aurocs, [True, True, False, True]) == {}
    assert validate._auroc_of_choice(aurocs, [False] * 4) == {"val_selection_auroc": None}


def test_training_says_so_and_records_it(tmp_path, capsys):
    from PIL import Image

    rng = np.random.default_rng(0)
    lines = ["image,patient,split,A,B"]
    for i in range(24):
        Image.fromarray(rng.integers(0, 255, (32, 32), dtype=np.uint8)).save(tmp_path / f"{i}.png")
        split = "train" if i < 10 else "val" if i < 18 else "test"
        lines.append(f"{i}.png,p{i // 2},{split},{i // 2 % 2},{int(i in (1, 3, 5, 10, 11, 18, 20))}")
    (tmp_path / "t.csv").write_text("\n".join(lines))
    columns = ManifestConfig(label_columns=("A", "B"), group_column="patient")
    config = replace(
        small_config(tmp_path / "run", epochs=1), data=DataConfig(str(tmp_path / "t.csv"), manifest=columns)
    )
    train.main(config)
    assert "note: fewer than 2 validation patients have, or lack, B: the epoch is chosen by" in capsys.readouterr().out
    record = (tmp_path / "run/history.jsonl").read_text()
    assert '"val_selection_auroc"' in record
