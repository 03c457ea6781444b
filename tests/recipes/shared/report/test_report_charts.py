import re
from xml.etree import ElementTree

import matplotlib.pyplot as plt
import pytest

from recipes.shared.report.charts import THEME, Line, _short, line_chart, roc_chart


def drawing(figure):
    return ElementTree.fromstring(re.search(r"<svg.*</svg>", figure, re.DOTALL).group())


def test_a_chart_follows_the_theme_and_names_nothing_outside():
    chart = line_chart(
        "Loss <1>", [Line("a&b", [0, 1, 2], [3.0, 2.0, 1.0]), Line("c", [0, 1, 2], [1, 2, 3], 1)], x_label="epoch"
    )
    assert "Loss &lt;1&gt;" in chart
    assert "a&amp;b" in chart
    assert "var(--s1)" in chart
    assert "var(--s2)" in chart
    assert not any(stand_in in chart for stand_in in THEME)
    assert "http" not in chart
    assert drawing(chart).attrib["viewBox"]
    assert "width" not in drawing(chart).attrib


def test_drawings_leave_no_figure_open_and_do_not_change():
    before = plt.get_fignums()
    charts = [line_chart("t", [Line("a", [0, 1], [0.0, 1.0])], x_label="epoch") for _ in range(2)]
    assert charts[0] == charts[1]
    assert plt.get_fignums() == before


def test_one_epoch_is_a_point_and_gaps_are_allowed():
    one = line_chart("t", [Line("a", [0], [0.5])], x_label="epoch")
    assert "<use" in one
    gap = line_chart("t", [Line("a", [0, 1, 2, 3, 4], [1.0, None, 2.0, 3.0, 4.0])], x_label="epoch")
    path = max((p.attrib["d"] for p in drawing(gap).iter("path") if "s1" in p.attrib.get("style", "")), key=len)
    assert path.count("M") == 2


def test_marks_and_levels_stand_in_the_legend_and_empty_lines_do_not():
    chart = line_chart(
        "t", [Line("full", [0, 1], [0.0, 1.0]), Line("empty", [0, 1], [None, None], 1)],
        x_label="epoch", mark=(1, 1.0, "best"), level=(2.0, "maximum"),
    )  # fmt: skip
    assert "best" in chart
    assert "maximum" in chart
    assert "empty" not in chart


def test_a_chart_without_values_is_refused():
    with pytest.raises(ValueError, match="lines of the chart 'Loss' must hold at least one value"):
        line_chart("Loss", [Line("a", [0], [None])], x_label="epoch")


def test_a_roc_curve_has_its_class_and_note():
    chart = roc_chart("Mass <b>", "AUROC 0.9", [0.0, 0.0, 1.0], [0.0, 0.8, 1.0])
    assert "Mass &lt;b&gt;" in chart
    assert "AUROC 0.9" in chart


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (5e-5, "5e−5"), (2.5e-5, "2.5e−5"), (0.25, "0.25"), (-1.5, "−1.5"), (2e6, "2e6")]
)
def test_ticks_are_short(value, text):
    assert _short(value) == text
