import re

import pytest

from recipes.shared.report.heat import Label, count_map, share_map
from recipes.shared.report.pages import SHARED, environment


def drawn(map):
    return str(environment(SHARED).get_template("heat.html.j2").module.heat_table(map))


def test_heat_cells_carry_their_number_and_an_opacity_in_proportion():
    made = drawn(
        share_map(
            [(Label("a<b", "n = 3"), [0.5, 0.25, 0.25]), (Label("none"), None)],
            columns=[Label("E0"), Label("E1", "<ct>"), Label("E2")],
            load=[0.4, 0.6, 0.0],
            top=0.5,
            empty="no positive study",
            total="All",
        )
    )
    assert '<td style="--a:1.00" class="strong">50%</td>' in made
    assert made.count('<td style="--a:0.50">25%</td>') == 2
    assert "<th>a&lt;b <small>n = 3</small></th>" in made
    assert "<th>E1 <small>&lt;ct&gt;</small></th>" in made
    assert '<td class="none" colspan="3">no positive study</td>' in made
    assert [float(x) for x in re.findall(r"height:([\d.]+)px", made)] == pytest.approx([26.7, 40.0, 0.0])
    assert re.search(r'<tr class="all"><th>All</th>\s*<td style="--a:0.80" class="strong">40%</td>', made)


def test_counts_are_coloured_by_their_share_of_the_row():
    made = drawn(count_map([("a<b", [3, 1]), ("c", [0, 0])], columns=["x", "y"], corner="true"))
    assert '<td style="--a:0.75" class="strong">3</td><td style="--a:0.25">1</td>' in made
    assert made.count('<td style="--a:0.00">0</td>') == 2
    assert "a&lt;b" in made
    assert "<th>true</th>" in made
    assert "Load" not in made
