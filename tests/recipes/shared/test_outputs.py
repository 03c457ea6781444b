"""What cannot be written is refused before time is spent on it."""

import os

import pytest

from recipes.shared.outputs import check_file, check_folder, check_outputs


def test_a_folder_is_made_and_left_empty(tmp_path):
    check_folder(tmp_path / "a" / "b", "--out")
    check_file(tmp_path / "c" / "table.csv", "--out")
    assert not any((tmp_path / "a" / "b").iterdir())
    assert not any((tmp_path / "c").iterdir())


def test_a_file_in_the_way_of_a_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("kept")
    with pytest.raises(ValueError, match=r"file cannot be written to \(File exists\): give another --out"):
        check_folder(tmp_path / "file", "--out")
    with pytest.raises(ValueError, match=r"file/run cannot be written to \(Not a directory\): give another --out"):
        check_folder(tmp_path / "file" / "run", "--out")
    with pytest.raises(ValueError, match="is a folder, expected the name of a file to write: give another --out"):
        check_file(tmp_path, "--out")
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write everywhere")
def test_permissions_are_looked_at(tmp_path):
    (tmp_path / "metrics.json").write_text("{}")
    (tmp_path / "metrics.json").chmod(0o400)
    with pytest.raises(ValueError, match=r"metrics\.json exists and cannot be written to"):
        check_outputs(tmp_path, ["metrics.json"])
    with pytest.raises(ValueError, match=r"metrics\.json exists and cannot be written to: give another --out"):
        check_file(tmp_path / "metrics.json", "--out")
    tmp_path.chmod(0o500)
    with pytest.raises(ValueError, match="cannot be written to"):
        check_outputs(tmp_path, [])
    tmp_path.chmod(0o700)


def test_a_run_that_does_not_exist_is_not_made(tmp_path):
    with pytest.raises(ValueError, match="absent does not exist: is it the folder of a finished run"):
        check_outputs(tmp_path / "absent", [])
    assert not (tmp_path / "absent").exists()
    (tmp_path / "metrics.json").mkdir()
    with pytest.raises(ValueError, match=r"metrics\.json is a folder, but the stage writes a file of this name"):
        check_outputs(tmp_path, ["metrics.json"])
