import gzip

import pytest

from recipes.data.tables.columns import filled, modality_name, split_names
from recipes.data.tables.csv_file import read_header, read_rows_without_header, read_table


def test_cells_stay_text(tmp_path):
    csv = tmp_path / "t.csv"
    csv.write_text('\ufeffa,b,c\n007,None,"two\nlines"\n1.0,,NA\nx,nan,\n', encoding="utf-8")
    table = read_table(csv, ["a", "c", "b", "a"])
    assert table == {"a": ["007", "1.0", "x"], "c": ["two\nlines", "NA", ""], "b": ["None", "", "nan"]}


def test_quotes_commas_and_line_ends_of_every_kind(tmp_path):
    csv = tmp_path / "t.csv"
    csv.write_bytes(b'a,b\r\n5" nodule,"say ""hi"", twice"\r\n\r\nx "q" y,2\r\n"",  z \r\n')
    assert read_table(csv, ["a", "b"]) == {"a": ['5" nodule', 'x "q" y', ""], "b": ['say "hi", twice', "2", "  z "]}
    csv.write_bytes(b"a,b\r1,2\r3,4")
    assert read_table(csv, ["b"]) == {"b": ["2", "4"]}


def test_columns_that_are_not_asked_for_may_have_one_name(tmp_path):
    csv = tmp_path / "t.csv"
    csv.write_text("a,b,b,\n1,2,3,4\n")
    assert read_table(csv, ["a", ""]) == {"a": ["1"], "": ["4"]}
    with pytest.raises(ValueError, match=r"t\.csv: has the column 'b' 2 times in its header .*: rename"):
        read_table(csv, ["a", "b"])


def test_the_header_alone_and_rows_without_one(tmp_path):
    csv = tmp_path / "t.csv"
    csv.write_text('\ufeff"a, b",c\n1,2\n\n3\n', encoding="utf-8")
    assert read_header(csv) == ["a, b", "c"]
    assert read_rows_without_header(csv) == [(1, ["a, b", "c"]), (2, ["1", "2"]), (4, ["3"])]
    csv.write_text("")
    with pytest.raises(ValueError, match=r"cannot read the csv .*t\.csv': it is empty, expected a row of column names"):
        read_header(csv)


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
    message = (
        r"t\.csv: lacks the column 'image', 'label'; it has \['image;label'\]. "
        r"Its columns are separated by ';': save it with commas"
    )
    with pytest.raises(ValueError, match=message):
        read_table(csv, ["image", "label"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"cannot read the csv .*it is empty, expected a row of column names"),
        (b"a,b\n", r"holds a header but no rows"),
        (b"a,b\n1,2,3\n", r"cannot read the csv .*row 1 \(line 2\) has 3 fields, but the header has 2.*double quotes"),
        (
            b"a,b\n1,2\n1,2,3,4\n",
            r"row 2 \(line 3\) has 4 fields, but .* begins with '1', '2', '3', '4'",
        ),
        (
            b"a,b\n1,2\n\n1\n",
            r"row 2 \(line 4\) has 1 fields, .*a field for every column, blank or",
        ),
        (b'a,b\n"x"y,2\n', r"cannot read the csv .*line 2: ',' expected after '\"'"),
        (b'a,b\n"x,2\n3,4\n', r"cannot read the csv .*line 3: unexpected end of data"),
        (b"a,a\n1,2\n", r"has the column 'a' 2 times in its header"),
        (b"a,b\n\xff\xfe,1\n", r"cannot read the csv .*utf-8.* Save it as UTF-8"),
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
