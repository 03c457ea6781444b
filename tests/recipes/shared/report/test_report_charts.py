import re
import subprocess
import sys
from xml.etree import ElementTree

import numpy as np
import pytest

from recipes.shared.report.charts import ROC_STEPS, Line, line_chart, reliability_chart, roc_chart
from recipes.shared.report.pages import SHARED, environment


def figure(chart):
    return str(environment(SHARED).get_template("figure.html.j2").module.chart_figure(chart))


def drawing(chart):
    return ElementTree.fromstring(chart.svg)


def paths(chart, stroke):
    return [path.attrib["d"] for path in drawing(chart).iter("path") if path.attrib.get("stroke") == stroke]


def texts(chart):
    return [text.text for text in drawing(chart).iter("text")]


def test_a_chart_follows_the_theme_and_names_nothing_outside():
    lines = [Line("a&b", [0, 1, 2], [3.0, 2.0, 1.0]), Line("c", [0, 1, 2], [1, 2, 3], 1)]
    chart = line_chart('Loss "<1>"', lines, x_label="epoch")
    made = figure(chart)
    assert "Loss &#34;&lt;1&gt;&#34;" in made
    assert "a&amp;b" in made
    assert "<1>" not in made
    colours = {
        element.attrib[key] for element in drawing(chart).iter() for key in ("stroke", "fill") if key in element.attrib
    }
    assert colours == {"var(--s1)", "var(--s2)", "var(--muted)", "var(--line)", "none"}
    assert "http" not in made
    assert drawing(chart).attrib == {
        "viewBox": drawing(chart).attrib["viewBox"], "role": "img", "aria-label": 'Loss "<1>"'
    }  # fmt: skip


def test_charts_have_no_names_that_could_clash_and_do_not_change():
    charts = [line_chart("t", [Line("a", [0, 1], [0.0, 1.0])], x_label="epoch") for _ in range(2)]
    assert charts[0] == charts[1]
    assert not any("id" in element.attrib for element in drawing(charts[0]).iter())
    assert "url(" not in charts[0].svg


def test_a_chart_is_readable_on_a_phone():
    chart = line_chart("t", [Line("a", [0, 1], [0.0, 1.0])], x_label="epoch")
    width = float(drawing(chart).attrib["viewBox"].split()[2])
    sizes = [float(text.attrib["font-size"].removesuffix("px")) for text in drawing(chart).iter("text")]
    assert min(sizes) * 360 / width >= 12


def test_one_epoch_is_a_point_and_gaps_are_allowed():
    one = line_chart("t", [Line("a", [0], [0.5])], x_label="epoch")
    assert len([path for path in drawing(one).iter("path") if path.attrib.get("fill") == "var(--s1)"]) == 1
    gap = line_chart("t", [Line("a", [0, 1, 2, 3, 4], [1.0, 1.5, None, 3.0, 4.0])], x_label="epoch")
    assert paths(gap, "var(--s1)")[0].count("M") == 2
    assert not [path for path in drawing(gap).iter("path") if path.attrib.get("fill") == "var(--s1)"]


def test_a_value_between_gaps_is_a_point():
    chart = line_chart("t", [Line("a", [0, 1, 2, 3, 4], [None, 1.0, None, 3.0, 4.0])], x_label="epoch")
    assert len([path for path in drawing(chart).iter("path") if path.attrib.get("fill") == "var(--s1)"]) == 1


def test_marks_and_levels_stand_in_the_legend_and_empty_lines_do_not():
    chart = line_chart(
        "t", [Line("full", [0, 1], [0.0, 1.0]), Line("empty", [0, 1], [None, None], 1)],
        x_label="epoch", mark=(1, 1.0, "best"), level=(2.0, "maximum"),
    )  # fmt: skip
    made = figure(chart)
    assert re.findall(r'<i class="(\w+)" style="color:var\((.*?)\)"></i>(.*?)</span>', made) == [
        ("dotted", "--muted", "maximum"),
        ("point", "--s2", "best"),
    ]
    assert "2" in texts(chart)
    assert "empty" not in made


def test_a_chart_without_values_is_refused():
    with pytest.raises(ValueError, match="lines of the chart 'Loss' must hold at least one value"):
        line_chart("Loss", [Line("a", [0], [None])], x_label="epoch")


@pytest.mark.parametrize(
    ("epochs", "ticks"),
    [
        ([0], ["0"]),
        ([0, 1], ["0", "1"]),
        (range(8), ["0", "2", "4", "6"]),
        (range(3, 6), ["3", "4", "5"]),
        (range(30), ["0", "5", "10", "15", "20", "25"]),
        (range(1, 100), ["20", "40", "60", "80"]),
    ],
)
def test_epochs_are_a_few_whole_numbers(epochs, ticks):
    shown = texts(line_chart("t", [Line("a", epochs, [float(epoch) for epoch in epochs])], x_label="epoch"))
    assert shown[: shown.index("epoch")] == ticks


def test_a_roc_curve_has_its_class_and_note():
    chart = roc_chart("Mass <b>", "AUROC 0.9", [0.0, 0.0, 1.0], [0.0, 0.8, 1.0])
    made = figure(chart)
    assert "Mass &lt;b&gt;" in made
    assert "AUROC 0.9" in made
    assert "<b>" not in made


def test_a_roc_curve_keeps_its_steps_and_fills_what_is_below():
    rates = ([0.0, 0.0, 0.2, 0.2, 1.0], [0.0, 0.5, 0.5, 0.8, 1.0])
    chart = roc_chart("a", "", *rates)
    (line,) = paths(chart, "var(--s1)")
    points = np.array([[float(x) for x in point.split(",")] for point in line[1:].split("L")])
    inside = (points - points[0]) / (points[-1] - points[0])
    np.testing.assert_allclose(inside.T, rates, atol=1e-4)
    assert points[0, 0] < points[-1, 0]
    assert points[0, 1] > points[-1, 1]
    (area,) = [path.attrib["d"] for path in drawing(chart).iter("path") if path.attrib.get("fill") == "var(--s1)"]
    assert area.startswith(f"{line}L{points[-1, 0]:g},{points[0, 1]:g}")


def test_a_roc_curve_of_many_studies_stays_small():
    ends = np.linspace(0, 1, 100_000)
    (path,) = paths(roc_chart("a", "", ends.tolist(), np.sqrt(ends).tolist()), "var(--s1)")
    assert ROC_STEPS <= path.count("L") + 1 <= 2 * ROC_STEPS + 1


@pytest.mark.parametrize(
    ("low", "high", "shown"),
    [
        (0, 5e-5, ["0", "1e−5", "5e−5"]),
        (0, 1e-4, ["2e−5", "1e−4"]),
        (0, 0.5, ["0", "0.1", "0.5"]),
        (-1.5, 0, ["−1.5", "0"]),
        (0, 2e6, ["5e5", "1e6", "1.5e6", "2e6"]),
    ],
)
def test_ticks_are_short(low, high, shown):
    assert set(shown) <= set(texts(line_chart("t", [Line("a", [0, 1], [low, high])], x_label="epoch")))


def test_command_lines_start_without_the_drawing_libraries():
    """They take seconds to load and are only needed by the stage that writes a report."""
    code = (
        "import sys, recipes.medvlmoe.__main__, recipes.medmoe.__main__\n"
        "loaded = {'altair', 'vl_convert', 'jinja2'} & set(sys.modules)\n"
        "print(sorted(loaded - {'jinja2'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["[]"]


def test_a_reliability_picture_has_a_point_per_bin_and_the_diagonal():
    lines = [Line("before", [0.1, 0.9], [0.3, 0.7], 1, "dashed"), Line("after", [0.2, 0.5, 0.8], [0.2, 0.5, 0.8])]
    chart = reliability_chart("Mass", "ECE 0.1", lines)
    filled = [path.attrib.get("fill") for path in drawing(chart).iter("path")]
    assert (filled.count("var(--s2)"), filled.count("var(--s1)")) == (2, 3)
    assert len(paths(chart, "var(--muted)")) == 1
    assert drawing(chart).attrib["aria-label"] == "reliability of Mass"
    assert (chart.title, chart.note) == ("Mass", "ECE 0.1")
