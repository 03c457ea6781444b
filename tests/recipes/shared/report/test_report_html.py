import pytest

from recipes.shared.report.html import Markup, html, join, page, section, table, tag

HOSTILE = '<script>alert("1")</script>'


def test_text_is_escaped_and_markup_is_not():
    assert html("a < b & c") == "a &lt; b &amp; c"
    assert html(Markup("<b>x</b>")) == "<b>x</b>"
    assert join([Markup("<i>"), "<i>", 3]) == "<i>&lt;i&gt;3"


def test_tags_escape_children_and_attributes_and_drop_none():
    assert tag("td", "a<b", class_="r") == '<td class="r">a&lt;b</td>'
    assert tag("p", aria_hidden="true", id=None) == '<p aria-hidden="true"></p>'
    assert tag("p", title='"><script>') == '<p title="&quot;&gt;&lt;script&gt;"></p>'


def test_a_table_has_its_rows_titles_and_sum():
    made = table(["Class", "AUROC"], [["Mean", "0.9"], [HOSTILE, "0.8"]], align="lr", total=True)
    assert made.count("<tr") == 3
    assert made.count('<tr class="total">') == 1
    assert '<td class="r">0.8</td>' in made
    assert HOSTILE not in made


def test_a_table_refuses_rows_of_another_width():
    with pytest.raises(ValueError, match="every row must have 2 cells, one per letter of align, got 3"):
        table(["a", "b"], [["1", "2", "3"]], align="lr")


def test_a_page_is_whole_and_loads_nothing():
    made = page(HOSTILE, [section("Title", tag("p", "text"), caption="how to read")])
    assert made.startswith("<!doctype html>")
    assert made.rstrip().endswith("</html>")
    assert "prefers-color-scheme: dark" in made
    assert '<p class="caption">how to read</p>' in made
    for outside in ("<script", "http:", "https:", "@import", "<link", "url("):
        assert outside not in made
