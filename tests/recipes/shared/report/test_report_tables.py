import re

import pytest

from recipes.shared.report.pages import SHARED, environment
from recipes.shared.report.tables import Column, Interval, Table

HOSTILE = '<script>alert("1")</script>'


def drawn(table):
    return str(environment(SHARED).get_template("table.html.j2").module.score_table(table))


def drawn_interval(cell):
    return str(environment(SHARED).get_template("table.html.j2").module.interval(cell))


def test_an_interval_is_placed_on_its_axis():
    bar = drawn_interval(Interval(0.8, [0.6, 0.9], 0.5, 1.0))
    assert 'cx="60.00%"' in bar
    assert 'x1="20.00%" x2="80.00%"' in bar
    assert "stroke-dasharray" in bar


def test_values_beyond_the_axis_stop_at_its_end_and_an_interval_may_be_missing():
    assert 'x1="0.00%" x2="100.00%"' in drawn_interval(Interval(0.8, [0.1, 1.2], 0.6, 1.0))
    alone = drawn_interval(Interval(0.8, None, 0.6, 1.0))
    assert alone.count("<circle") == 1
    assert "<line" not in alone


def test_an_interval_may_be_compared_with_any_reference_or_with_none():
    assert 'x1="25.00%" x2="25.00%"' in drawn_interval(Interval(0.8, None, 0.0, 1.0, reference=0.25))
    assert "<line" not in drawn_interval(Interval(0.8, None, 0.0, 1.0, reference=None))


def test_a_table_has_its_rows_titles_and_sum():
    made = drawn(Table([Column("Class", "text"), Column("AUROC")], [["Mean", "0.9"], [HOSTILE, "0.8"]], total=True))
    assert made.count("<tr") == 3
    assert made.count('<tr class="total">') == 1
    assert made.index('<tr class="total">') < made.index("Mean") < made.index("0.8")
    assert '<td class="r">0.8</td>' in made
    assert "<script" not in made
    assert "&lt;script&gt;alert(&#34;1&#34;)&lt;/script&gt;" in made


def test_a_column_with_an_axis_holds_a_drawing_or_a_text():
    columns = [Column("Class", "text"), Column("AUROC", "axis", ("0.4", "1.0"))]
    made = drawn(Table(columns, [["a", Interval(0.8, None, 0.4, 1.0)], ["b", "undefined"], ["c", ""]]))
    assert "<span>0.4</span><span>AUROC</span><span>1.0</span>" in made
    cells = re.findall(r'<td class="wide">(.*?)</td>', made, re.DOTALL)
    assert "<circle" in cells[0]
    assert cells[1:] == ['<span class="muted">undefined</span>', ""]


def test_a_table_refuses_rows_of_another_width():
    with pytest.raises(ValueError, match="every row must have 2 cells, one per column, got 3"):
        Table([Column("a"), Column("b")], [["1", "2", "3"]])
