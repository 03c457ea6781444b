import gzip

import pytest

from recipes.data.tables.columns import filled, modality_name, read_table, split_names


def test_cells_stay_text(tmp_path):
    csv = tmp_path / "t.csv"
    csv.write_text('\ufeffa,b,c\n007,None,"two\nlines"\n1.0,,NA\nx\n', encoding="utf-8")
    table = read_table(csv, ["a", "c", "b", "a"])
    assert table == {"a": ["007", "1.0", "x"], "c": ["two\nlines", "NA", ""], "b": ["None", "", ""]}


def test_reads_compressed_files(tmp_path):
    csv = tmp_path / "t.csv.gz"
    csv.write_bytes(gzip.compress(b"a\n1\n"))
    assert read_table(csv, ["a"]) == {"a": ["1"]}
    csv.write_bytes(gzip.compress(b"a\n1\n")[:-6])
    with pytest.raises(ValueError, match=r"cannot read the csv .*t\.csv\.gz"):
        read_table(csv, ["a"])


def test_a_column_it_lacks_is_named_with_the_file_and_those_it_has(tmp_path):
    csv = tmp_path / "t.csv"
    csv.write_text("image;label\na.png;1\n")
    with pytest.raises(ValueError, match=r"t\.csv: lacks the column 'image', 'label'; it has \['image;label'\]"):
        read_table(csv, ["image", "label"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"cannot read the csv .*No columns"),
        (b"a,b\n", r"holds a header but no rows"),
        (b"a,b\n1,2,3\n", r"cannot read the csv .*Length of header"),
        (b"a,b\n1,2\n1,2,3,4\n", r"cannot read the csv .*Expected 2 fields in line 3, saw 4"),
        (b"a,b\n\xff\xfe,1\n", r"cannot read the csv .*utf-8"),
    ],
)
def test_refuses_what_is_no_table(tmp_path, content, message):
    csv = tmp_path / "t.csv"
    csv.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_table(csv, ["a"])


def test_refuses_a_csv_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match=r"csv file .*no\.csv' does not exist"):
        read_table(tmp_path / "no.csv", ["a"])


def test_splits_in_any_spelling():
    cells = ["Train", "val", " VALID", "validation", "test"]
    assert split_names(cells, "split", "t.csv") == ["train", "val", "val", "val", "test"]


def test_refuses_other_splits_naming_the_row():
    with pytest.raises(ValueError, match=r"t\.csv: column 'fold', row 2: a split must be one of train, .*got 'dev'"):
        split_names(["train", "dev"], "fold", "t.csv")


def test_refuses_blank_cells_where_each_row_needs_one():
    assert filled([" a "], "image", "t.csv") == ("a",)
    with pytest.raises(ValueError, match=r"t\.csv: column 'image', row 2 is blank"):
        filled(["a", " "], "image", "t.csv")


def test_modalities_are_lower_case_and_blank_is_unknown():
    assert [modality_name(cell) for cell in (" CT", "X-ray ", "", " ", "NaN")] == ["ct", "x-ray", None, None, None]
