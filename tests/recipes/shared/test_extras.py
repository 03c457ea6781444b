import importlib
import json

import pytest

from recipes.shared.cli import run_stage
from recipes.shared.extras import require


def test_gives_the_module_itself():
    assert require("json", "a test") is json


def test_says_what_needs_the_package_and_how_to_install_it():
    with pytest.raises(ImportError, match=r'reading a star needs no_such_package.*pip install "moekit\[recipes\]"'):
        require("no_such_package.inner", "reading a star")


def test_names_the_package_that_is_missing_where_another_one_needs_it(tmp_path, monkeypatch):
    (tmp_path / "needs_a_star.py").write_text("import no_such_star.inner")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match=r"reading a star needs no_such_star, which cannot be imported"):
        require("needs_a_star", "reading a star")


def test_a_stage_that_lacks_a_package_says_how_to_install_it():
    def stage(arguments: list[str]) -> None:
        importlib.import_module(arguments[0])

    with pytest.raises(SystemExit, match=r'No module named .no_such_package.*need: pip install "moekit\[recipes\]"'):
        run_stage("recipes.any", {"train": stage}, {"train": "Train."}, ["train", "no_such_package"])
