import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recipes.data.studies import Task
from recipes.data.tables.labels import check_choice, is_blank, labels_from_column, labels_from_columns


def from_columns(columns, **changes):
    arguments = {"task": "multi-label", "uncertain": "ignore", "blank": "ignore", "where": "t.csv"}
    return labels_from_columns(columns, **(arguments | changes))


def from_column(cells, **changes):
    arguments = {
        "separator": "|",
        "task": None,
        "classes": None,
        "blank": "ignore",
        "negative_label": None,
        "where": "t.csv: column 'label'",
    }
    return labels_from_column(cells, **(arguments | changes))


CHEXPERT = {"Edema": ["1.0", "0.0", "-1.0", ""], "Fracture": ["", "nan", "1", " 0 "]}


@pytest.mark.parametrize(
    ("uncertain", "blank", "edema", "fracture"),
    [
        ("ignore", "ignore", [1, 0, np.nan, np.nan], [np.nan, np.nan, 1, 0]),
        ("zeros", "zeros", [1, 0, 0, 0], [0, 0, 1, 0]),
        ("ones", "ignore", [1, 0, 1, np.nan], [np.nan, np.nan, 1, 0]),
    ],
)
def test_policies_for_uncertain_and_blank(uncertain, blank, edema, fracture):
    labels = from_columns(CHEXPERT, uncertain=uncertain, blank=blank)
    np.testing.assert_array_equal(labels, np.array([edema, fracture], np.float32).T)
    assert labels.dtype == np.float32


@pytest.mark.parametrize("cell", ["2", "yes", "0.5", "inf"])
def test_refuses_other_cells_naming_column_and_row(cell):
    with pytest.raises(ValueError, match=f"t.csv: column 'a', row 2: a label must be 1, 0, -1 .*got '{cell}'"):
        from_columns({"a": ["0", cell]})


def test_one_hot_columns_of_a_single_label_task():
    labels = from_columns({"a": ["1", "0"], "b": ["0", "1"]}, task="binary-class")
    np.testing.assert_array_equal(labels, np.eye(2))


@pytest.mark.parametrize("second", [("1", "1"), ("0", "0"), ("", "1"), ("-1", "1")])
def test_refuses_rows_that_are_not_one_hot(second):
    with pytest.raises(ValueError, match=r"row 2: a multi-class task needs exactly one 1 among .*'a', 'b'"):
        from_columns({"a": ["1", second[0]], "b": ["0", second[1]]}, task="multi-class")


def test_names_without_separator_are_classes():
    task, classes, labels = from_column(["dog", " cat", "dog"])
    assert (task, classes) == ("multi-class", ("cat", "dog"))
    np.testing.assert_array_equal(labels, [[0, 1], [1, 0], [0, 1]])


def test_joined_names_are_several_labels():
    task, classes, labels = from_column(["Edema|Mass", "Mass", "", "No Finding"])
    assert (task, classes) == ("multi-label", ("Edema", "Mass", "No Finding"))
    np.testing.assert_array_equal(labels, [[1, 1, 0], [0, 1, 0], [np.nan] * 3, [0, 0, 1]])


def test_a_negative_label_is_no_class():
    task, classes, labels = from_column(["Mass", "No Finding", ""], negative_label="No Finding", blank="zeros")
    assert (task, classes) == ("multi-label", ("Mass",))
    np.testing.assert_array_equal(labels, [[1], [0], [0]])


def test_refuses_a_negative_label_beside_another():
    with pytest.raises(ValueError, match=r"row 2: 'No Finding' is none of the classes \['Mass'\]"):
        from_column(["Mass", "Mass|No Finding"], negative_label="No Finding")


def test_a_single_label_task_does_not_split_names():
    assert from_column(["a|b", "c"], task="multi-class")[1] == ("a|b", "c")
    assert from_column(["a|b", "c"], separator=None)[1] == ("a|b", "c")


def test_numbers_sort_as_numbers_and_given_classes_keep_their_order():
    assert from_column(["10", "9", "-1"])[1] == ("-1", "9", "10")
    _, classes, labels = from_column(["low", "high"], task="ordinal-regression", classes=["low", "mid", "high"])
    assert classes == ("low", "mid", "high")
    np.testing.assert_array_equal(labels, [[1, 0, 0], [0, 0, 1]])


@pytest.mark.parametrize(
    ("cells", "changes", "message"),
    [
        (["a", ""], {}, "column 'label': row 2 is blank, but a multi-class task needs a class"),
        (["a", "b"], {"classes": ["a", "c"]}, r"row 2: 'b' is none of the classes \['a', 'c'\]"),
        (["a", "a"], {}, r"a multi-class task needs at least 2 classes, got \['a'\]"),
        (["a", "b", "c"], {"task": "binary-class"}, "needs exactly 2 classes"),
        ([""], {"task": "multi-label"}, r"needs at least 1 classes, got \[\]"),
        (["a", "b"], {"task": "ordinal-regression"}, "classes must be given, lowest first"),
        (["a", "b"], {"classes": ["a", "a", "b"]}, "classes must differ from each other"),
        (["a"], {"classes": ["a", "n"], "negative_label": "n"}, "and from the negative label"),
        (
            ["a"],
            {"task": "multi-class", "negative_label": "n"},
            "negative_label is for multi-label tasks, got 'n'",
        ),
    ],
)
def test_refuses_what_the_task_cannot_have(cells, changes, message):
    with pytest.raises(ValueError, match=message):
        from_column(cells, **changes)


@given(st.lists(st.sets(st.sampled_from("abcde")), min_size=1, max_size=30).filter(any))
@settings(deadline=None, max_examples=60)
def test_joined_names_come_back_from_the_labels(rows):
    cells = ["|".join(sorted(names)) for names in rows]
    _, classes, labels = from_column(cells, task="multi-label", blank="zeros")
    assert [{classes[i] for i in np.flatnonzero(row)} for row in labels] == rows


def test_choices_are_named():
    check_choice("task", "multi-class", Task)
    with pytest.raises(ValueError, match=r"task must be one of 'multi-label', .*got 'multi'"):
        check_choice("task", "multi", Task)


def test_blank_cells():
    assert [is_blank(cell) for cell in ["", "  ", "NaN", "None", "NA", "0"]] == [
        True,
        True,
        True,
        False,
        False,
        False,
    ]
