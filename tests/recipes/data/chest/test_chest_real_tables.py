"""The real tables of ChestX-ray14, CheXpert and Open-i, which are no part of this project: torchxrayvision has them."""

import importlib.util
import random
import shutil
from pathlib import Path

import numpy as np
import pytest

from recipes.data.chest.chestxray14 import CLASSES as NIH
from recipes.data.chest.chestxray14 import read_chestxray14
from recipes.data.chest.chexpert import CLASSES as CHEXPERT
from recipes.data.chest.chexpert import read_chexpert
from recipes.data.chest.openi import CLASSES as OPENI
from recipes.data.chest.openi import read_openi
from recipes.data.chest.options import ChestOptions
from recipes.data.chest.views import rows_of_views
from recipes.data.tables.csv_file import read_table
from tests.recipes import chest_folders as folders

PACKAGE = importlib.util.find_spec("torchxrayvision")
pytestmark = pytest.mark.skipif(PACKAGE is None, reason="torchxrayvision, which carries the tables, is not installed")
PLAIN = ChestOptions()


@pytest.fixture(scope="module")
def tables():
    return Path(PACKAGE.origin).parent / "data"


def test_chestxray14_with_lists_drawn_by_patient(tables, tmp_path):
    shutil.copy(tables / "Data_Entry_2017_v2020.csv.gz", tmp_path)
    table = read_table(tmp_path / "Data_Entry_2017_v2020.csv.gz", ["Image Index", "Patient ID"])
    held_out = set(random.Random(0).sample(sorted(set(table["Patient ID"])), 6000))
    lists = {"train_val_list.txt": [], "test_list.txt": []}
    for name, patient in zip(table["Image Index"], table["Patient ID"], strict=True):
        lists["test_list.txt" if patient in held_out else "train_val_list.txt"].append(name)
    for file, names in lists.items():
        (tmp_path / file).write_text("\n".join(names))
    rows = read_chestxray14(tmp_path, PLAIN)
    assert len(rows.ids) == 112120
    assert len(set(rows.groups)) == 30805
    counts = dict(zip(NIH, rows.labels.sum(0).astype(int).tolist(), strict=True))
    assert counts["Infiltration"] == 19894
    assert counts["Hernia"] == 227
    assert int((rows.labels.sum(1) == 0).sum()) == 60361
    assert rows.splits.count("test") == len(lists["test_list.txt"])
    assert len(rows_of_views(rows.views, ["PA"], "table")) + len(rows_of_views(rows.views, ["AP"], "table")) == 112120


def test_chexpert(tables, tmp_path):
    root = folders.chexpert_folder(tmp_path / "set")
    (root / "train.csv").unlink()
    shutil.copy(tables / "chexpert_train.csv.gz", root / "train.csv.gz")
    rows = read_chexpert(root, ChestOptions(blank="ignore"))
    train = np.array(rows.splits) == "train"
    assert train.sum() == 223414
    assert len(set(rows.groups[: train.sum()])) == 64540
    edema = rows.labels[train, CHEXPERT.index("Edema")]
    assert [int((edema == 1).sum()), int((edema == 0).sum())] == [52246, 20726]
    assert len(rows_of_views(rows.views[: train.sum()], ["lateral"], "table")) == 32387
    ones = read_chexpert(root, ChestOptions(uncertain="ones")).labels[train, CHEXPERT.index("Edema")]
    assert int(ones.sum()) == 52246 + 12984


def test_openi(tables, tmp_path):
    shutil.copy(tables / "NLMCXR_reports.tgz", tmp_path)
    folders.draw(tmp_path / "CXR1_1_IM-0001-3001.png", 1)
    rows = read_openi(tmp_path, PLAIN)
    assert (len(rows.ids), len(set(rows.groups))) == (7470, 3955 - 104)
    assert rows.notes[0] == "104 reports have no image"
    cardiomegaly = {g for g, row in zip(rows.groups, rows.labels, strict=True) if row[OPENI.index("Cardiomegaly")] == 1}
    assert 300 < len(cardiomegaly) <= 375
    assert sum(text is not None for text in rows.texts) > 7300
