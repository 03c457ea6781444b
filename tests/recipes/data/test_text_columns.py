"""Columns of texts are recognised by their names and by what they hold."""

import os
from pathlib import Path

import pytest

from recipes.data.tables.text_columns import text_columns

HEADER = "image,report,remarks,place,url,no finding,view"
ROWS = [
    f"{i}.png,clear lungs,the patient came with fever and cough for {i} days and nights,Ho Chi Minh City in the south "
    f"of the country Vietnam,https://example.org/a/b/c/d/e/f/g{i}.png,1,PA view"
    for i in range(5)
]


def table(folder, rows, header=HEADER):
    (folder / "t.csv").write_text("\n".join([header, *rows]) + "\n")
    return folder / "t.csv"


def test_texts_are_named_and_nothing_else(tmp_path):
    """A url, a place that is the same in most rows, a label and a short code are no texts."""
    assert text_columns(table(tmp_path, ROWS), {"image"}) == ["report", "remarks"]
    assert text_columns(table(tmp_path, ROWS), {"image", "report"}) == ["remarks"]


def test_blank_columns_and_tables_without_rows_hold_no_text(tmp_path):
    assert text_columns(table(tmp_path, ["a.png,,nan,,,0,"]), {"image"}) == []
    assert text_columns(table(tmp_path, []), {"image"}) == []


@pytest.mark.skipif("MOEKIT_REAL_DATA" not in os.environ, reason="needs the real sets")
def test_the_notes_of_covid_chestxray_are_recognised():
    (csv,) = (Path(os.environ["MOEKIT_REAL_DATA"]) / "covid_cxr").glob("*.csv")
    assert text_columns(csv, {"image", "split"}) == ["clinical_notes"]
