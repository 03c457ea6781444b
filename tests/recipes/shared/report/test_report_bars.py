import re

import pytest

from recipes.shared.report.bars import count_map, gauge, heat_map, interval_bar, labelled_bars, probability_bars


def test_an_interval_is_placed_on_its_axis():
    bar = interval_bar(0.8, [0.6, 0.9], 0.5, 1.0)
    assert 'cx="60.00%"' in bar
    assert 'x1="20.00%" x2="80.00%"' in bar
    assert "stroke-dasharray" in bar


def test_what_lies_outside_the_axis_stops_at_its_end_and_an_interval_may_be_missing():
    assert 'x1="0.00%" x2="100.00%"' in interval_bar(0.8, [0.1, 1.2], 0.6, 1.0)
    alone = interval_bar(0.8, None, 0.6, 1.0)
    assert alone.count("<circle") == 1
    assert "<line" not in alone


def test_heat_cells_carry_their_number_and_an_opacity_in_proportion():
    made = heat_map(
        [("a<b", [0.5, 0.25, 0.25]), ("none", None)],
        columns=["E0", "E1", "E2"],
        load=[0.4, 0.6, 0.0],
        top=0.5,
        empty="no positive study",
        total="All",
    )
    assert '<td style="--a:1.00" class="strong">50%</td>' in made
    assert made.count('<td style="--a:0.50">25%</td>') == 2
    assert "a&lt;b" in made
    assert '<td class="none" colspan="3">no positive study</td>' in made
    assert [float(x) for x in re.findall(r"height:([\d.]+)px", made)] == pytest.approx([26.7, 40.0, 0.0])


def test_probabilities_stand_beside_the_truth_in_words():
    made = probability_bars([("a", 0.25, 1.0), ("b", 0.5, 0.0), ("c", 1.0, None)])
    assert made.count('class="present"') == 1
    assert [float(x) for x in re.findall(r"width:([\d.]+)%", made)] == [25.0, 50.0, 100.0]
    assert re.findall("present</td>|absent</td>|unknown</td>", made) == ["present</td>", "absent</td>", "unknown</td>"]


def test_a_gauge_never_overflows():
    assert "width:100.0%" in gauge(1.2, "left", "right")
    assert "width:50.0%" in gauge(0.5, "left", "right")


def test_an_interval_may_be_compared_with_any_mark_or_with_none():
    assert 'x1="25.00%" x2="25.00%"' in interval_bar(0.8, None, 0.0, 1.0, mark=0.25)
    assert "<line" not in interval_bar(0.8, None, 0.0, 1.0, mark=None)


def test_counts_are_coloured_by_their_share_of_the_row():
    made = count_map([("a<b", [3, 1]), ("c", [0, 0])], columns=["x", "y"], corner="true")
    assert '<td style="--a:0.75" class="strong">3</td><td style="--a:0.25">1</td>' in made
    assert made.count('<td style="--a:0.00">0</td>') == 2
    assert "a&lt;b" in made


def test_labelled_bars_single_out_what_they_are_told_to():
    made = labelled_bars([("E0", 0.25, "chosen", True), ("E1", 0.75, "", False)])
    assert made.count('class="present"') == 1
    assert made.index("chosen</td>") < made.index("E1")
