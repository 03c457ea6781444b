"""Classes of one data set in those of another."""

import numpy as np
import pytest

from recipes.shared.label_maps import map_labels, parse_label_map

TRAINED = ("Effusion", "Mass", "Hernia", "Edema")
EXTERNAL = ("Pleural Effusion", "Lung Lesion", "Nodule", "edema")


def test_entries_and_equal_names_make_a_map_in_the_order_of_training():
    entries = ["Mass=Lung Lesion|Nodule", "Effusion=Pleural Effusion"]
    assert parse_label_map(entries, TRAINED, EXTERNAL) == {
        "Effusion": ("Pleural Effusion",), "Mass": ("Lung Lesion", "Nodule"), "Edema": ("edema",),
    }  # fmt: skip
    assert list(parse_label_map([*entries, "Edema="], TRAINED, EXTERNAL)) == ["Effusion", "Mass"]


def test_any_present_counterpart_counts_and_unknown_ones_leave_the_label_unknown():
    nan = np.nan
    labels = [[1, 0, 0], [0, 1, nan], [0, nan, 0], [nan, 0, 0]]
    mapped = map_labels(labels, ("a", "b", "c"), {"x": ("b", "c"), "y": ("a",)})
    np.testing.assert_array_equal(mapped, [[0, 1], [1, 0], [nan, 0], [0, nan]])


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (["Mass"], "takes entries TRAINED=EXTERNAL, got 'Mass'"),
        (["Mass=Nodule", "Mass=edema"], "names the class 'Mass' twice"),
        (["mass=Nodule"], r"'mass' in 'mass=Nodule' is no trained class; there are \['Effusion', 'Mass'"),
        (["Mass=Nodule|Cyst"], "'Cyst' in 'Mass=Nodule|Cyst' is no external class"),
        (["Edema="], "no class has a counterpart: the run knows .*--label-map TRAINED=EXTERNAL"),
    ],
)
def test_maps_refuse(entries, message):
    with pytest.raises(ValueError, match=message):
        parse_label_map(entries, TRAINED, EXTERNAL)
