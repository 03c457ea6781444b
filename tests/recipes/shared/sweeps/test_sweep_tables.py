"""Tables of a sweep as text, and checksums."""

import pytest

from recipes.shared.sweeps.provenance import checksum, commit_of_code, data_checksum, file_checksum
from recipes.shared.sweeps.tables import markdown_list, markdown_table, write_csv


def test_columns_of_figures_are_aligned_to_the_right():
    assert markdown_table(["a", "b"], [["x | y", "-0.1"], ["z\nw", "–"]]).splitlines() == [
        "| a | b |",
        "| --- | ---: |",
        "| x \\| y | -0.1 |",
        "| z w | – |",
    ]
    assert markdown_table(["a"], []).splitlines()[1] == "| --- |"
    assert markdown_list(["a", "b"]) == "- a\n- b"
    with pytest.raises(ValueError, match=r"every row must have 2 cells, one per column, got 1: \['x'\]"):
        markdown_table(["a", "b"], [["x"]])


def test_csv_has_the_columns_of_all_rows(tmp_path):
    write_csv(tmp_path / "t.csv", [{"a": 1, "b": None}, {"c": "x,y", "a": 2}])
    assert (tmp_path / "t.csv").read_text() == 'a,b,c\n1,,\n2,,"x,y"\n'
    assert [path.name for path in tmp_path.iterdir()] == ["t.csv"]


def test_checksums(tmp_path):
    assert checksum({"a": 1, "b": (1, 2)}) == checksum({"b": [1, 2], "a": 1}) != checksum({"a": 2, "b": [1, 2]})
    assert file_checksum(tmp_path / "none") is data_checksum(tmp_path) is None
    (tmp_path / "data.json").write_text("{}")
    assert data_checksum(tmp_path) == file_checksum(tmp_path / "data.json")
    assert commit_of_code().strip()
