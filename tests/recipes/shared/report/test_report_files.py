import json

import numpy as np
import pytest

from recipes.shared.report.files import check_section, content_of, read_examples, read_history, read_object


def test_what_was_written_is_read(tmp_path):
    (tmp_path / "a.json").write_text('{"x": 1}')
    assert read_object(tmp_path / "a.json", ["x"]) == {"x": 1}
    (tmp_path / "h.jsonl").write_text('{"epoch": 1}\n\n{"epoch": 2}\n')
    assert read_history(tmp_path / "h.jsonl", ["epoch"]) == [{"epoch": 1}, {"epoch": 2}]
    (tmp_path / "h.jsonl").write_text('{"epoch": 0}\n{"epoch": 1}\n')  # of an earlier version
    assert read_history(tmp_path / "h.jsonl", ["epoch"]) == [{"epoch": 1}, {"epoch": 2}]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"a\.json: the file is missing. A report needs the whole folder"),
        ("{", r"a\.json: expected JSON, got something else"),
        ("[]", r"a\.json: expected a JSON object, got list"),
        ("{}", r'a\.json: the field "x" is missing'),
    ],
)
def test_an_object_that_cannot_be_used_is_named(tmp_path, content, message):
    if content is not None:
        (tmp_path / "a.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_object(tmp_path / "a.json", ["x"])


@pytest.mark.parametrize(
    ("content", "message"),
    [("\n", r"h\.jsonl: expected one line per epoch, got none"), ("{}", r'h\.jsonl: a line lacks the field "epoch"')],
)
def test_a_history_that_cannot_be_used_is_named(tmp_path, content, message):
    (tmp_path / "h.jsonl").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_history(tmp_path / "h.jsonl", ["epoch"])


def test_examples_are_rows_of_every_array_but_the_common_ones(tmp_path):
    path = tmp_path / "e.npz"
    assert read_examples(path, ["images"]) is None
    np.savez(path, images=np.zeros((2, 4, 4), np.uint8), names=np.array(["a", "b", "c"]))
    arrays = read_examples(path, ["images"], common=["names"])
    assert arrays is not None
    assert arrays["names"].tolist() == ["a", "b", "c"]
    with pytest.raises(ValueError, match="expected 2 studies in every array, got 3 in 'names'"):
        read_examples(path, ["images"])
    with pytest.raises(ValueError, match=r"the arrays \['ids'\] are missing"):
        read_examples(path, ["images", "ids"])
    np.savez(path, images=np.zeros((0, 4, 4), np.uint8))
    assert read_examples(path, ["images"]) is None


@pytest.mark.parametrize("content", [b"PK\x03\x04 cut off", b"no archive", json.dumps({}).encode()])
def test_examples_of_another_kind_are_refused(tmp_path, content):
    (tmp_path / "e.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"e\.npz: expected arrays saved by numpy\.savez"):
        read_examples(tmp_path / "e.npz", ["images"])


def test_single_values_are_no_examples(tmp_path):
    np.savez(tmp_path / "e.npz", images=np.zeros((2, 4, 4), np.uint8), ids=np.array("a"))
    with pytest.raises(ValueError, match=r"e\.npz: expected one row per study in every array, got single values in"):
        read_examples(tmp_path / "e.npz", ["images"])


def test_text_of_another_encoding_is_named(tmp_path):
    (tmp_path / "a.json").write_bytes(b'{"x": "\xe9"}')
    with pytest.raises(ValueError, match=r"a\.json: expected text in UTF-8"):
        read_object(tmp_path / "a.json")


def test_a_section_is_an_object_with_its_fields(tmp_path):
    path = tmp_path / "a.json"
    check_section(path, {"x": {"y": 1}}, "x", ["y"])
    with pytest.raises(ValueError, match=r'a\.json: "x" lacks the field "z"'):
        check_section(path, {"x": {"y": 1}}, "x", ["z"])
    with pytest.raises(ValueError, match=r'a\.json: "x" must be an object, got list'):
        check_section(path, {"x": []}, "x", ["y"])


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda content: content["b"], r"a\.json: the field 'b' is missing. Run the stage that writes the file again"),
        (lambda content: content["a"].get("b"), r"a\.json: a value is not what a report expects \('str' object has no"),
        (lambda content: float(content["a"]), r"a\.json: a value is not what a report expects \(could not convert"),
        (lambda content: content["c"] + 1, r"a\.json: a value is not what a report expects \(unsupported operand"),
        (lambda content: content["d"][0], r"a\.json: a value is not what a report expects \(list index out of range"),
    ],
)
def test_errors_over_a_file_s_content_name_the_file(tmp_path, use, message):
    with pytest.raises(ValueError, match=message), content_of(tmp_path / "a.json"):
        use({"a": "text", "c": None, "d": []})
