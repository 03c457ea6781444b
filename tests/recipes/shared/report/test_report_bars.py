import re

from recipes.shared.report.bars import Bar, Gauge, probability_bars
from recipes.shared.report.pages import SHARED, environment


def drawn(bars):
    return str(environment(SHARED).get_template("bars.html.j2").module.bar_table(bars))


def drawn_gauge(gauge):
    return str(environment(SHARED).get_template("bars.html.j2").module.gauge_bar(gauge))


def test_probabilities_stand_beside_the_truth_in_words():
    made = drawn(probability_bars([("a", 0.25, 1.0, True), ("b", 0.5, 0.0, False), ("c", 1.0, None, True)]))
    assert made.count('class="present"') == 1
    assert [float(x) for x in re.findall(r"width:([\d.]+)%", made)] == [25.0, 50.0, 100.0]
    assert re.findall("present</td>|absent</td>|unknown</td>", made) == ["present</td>", "absent</td>", "unknown</td>"]


def test_the_four_outcomes_look_different():
    outcomes = [(label, predicted) for label in (1.0, 0.0) for predicted in (True, False)]
    made = [drawn(probability_bars([("a", 0.5, *outcome)])) for outcome in outcomes]
    assert [re.findall(r'<tr class="([^"]*)"', text) for text in made] == [
        ["present"], ["present missed"], ["false-positive"], [],
    ]  # fmt: skip
    words = [re.findall(r'truth">([^<]*)', text)[0] for text in made]
    assert words == ["● present", "◐ present, missed", "✕ absent, false positive", "○ absent"]
    style = (SHARED / "study.css").read_text()
    assert all(f".{name} " in style for name in ("present", "missed", "false-positive"))


def test_strong_bars_are_emphasised():
    made = drawn([Bar("E0", 0.25, "chosen", True), Bar("E1 <b>", 0.75)])
    assert made.count('class="present"') == 1
    assert made.index("chosen</td>") < made.index("E1 &lt;b&gt;")


def test_bars_and_gauges_never_overflow():
    assert "width:100.0%" in drawn_gauge(Gauge(1.2, "left", "right"))
    assert "width:50.0%" in drawn_gauge(Gauge(0.5, "left", "right"))
    assert "width:0.0%" in drawn([Bar("a", -0.1)])
