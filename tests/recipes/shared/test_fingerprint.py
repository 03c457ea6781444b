"""Data that were changed since the training are recognised."""

from dataclasses import replace

import numpy as np
import pytest

from recipes.data.image_files import ImageFiles
from recipes.shared.fingerprint import changes, check_unchanged, write_fingerprint


def split(n):
    names = tuple(f"{i}.png" for i in range(n))
    labels = np.array([[i % 2, np.nan] for i in range(n)], np.float32)
    return ImageFiles(names, names, ((),) * n, labels, names, ("note", *(None,) * (n - 1)), (None,) * n)


@pytest.fixture
def run(tmp_path):
    write_fingerprint(tmp_path, [("train", split(4)), ("test", split(3))])
    return tmp_path


def test_the_same_data_have_not_changed(run):
    assert changes(run, [("train", split(4)), ("test", split(3))]) == []
    elsewhere = replace(split(3), paths=("/mnt/0.png", "/mnt/1.png", "/mnt/2.png"))
    assert changes(run, [("test", elsewhere)]) == []


@pytest.mark.parametrize(
    ("test", "found"),
    [
        (split(2), "test has 2 studies, 3 when it was trained"),
        (replace(split(3), ids=("1.png", "0.png", "2.png")), "the images of test differ"),
        (replace(split(3), groups=("a", "a", "b")), "the groups of test differ"),
        (replace(split(3), labels=np.zeros((3, 2), np.float32)), "the labels of test differ"),
        (replace(split(3), texts=("note", "", None)), "the texts of test differ"),
        (replace(split(3), texts=("Note", None, None), groups=("a",) * 3), "the groups, texts of test differ"),
    ],
)
def test_what_differs_is_named(run, test, found):
    assert changes(run, [("train", split(4)), ("test", test)]) == [found]


def test_the_error_names_the_table_and_the_way_out(run):
    with pytest.raises(
        ValueError, match=r"set\.csv is not as it was when .* was trained: test has 5 .* remove .*data\.json"
    ):
        check_unchanged(run, [("test", split(5))], data="set.csv")


def test_runs_of_older_versions_are_not_checked(tmp_path):
    check_unchanged(tmp_path, [("test", split(5))], data="set.csv")
