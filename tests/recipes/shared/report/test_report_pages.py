import re
from dataclasses import dataclass
from pathlib import Path

import jinja2
import pytest

from recipes.shared.report.facts import Figure, facts, header
from recipes.shared.report.pages import SHARED, environment, render

HOSTILE = """<script>alert("1")</script> '&"""
RECIPES = Path(SHARED).parents[2]
TEMPLATES = sorted(RECIPES.glob("*/report/templates/*"))


@dataclass(frozen=True)
class Content:
    """What every page has."""

    text: str = HOSTILE


@pytest.fixture
def page(tmp_path):
    """Renders a page whose only section is the template's text."""

    def made(template):
        (tmp_path / "report.html.j2").write_text(
            '{% extends "page.html.j2" %}{% block sections %}' + template + "{% endblock %}"
        )
        top = header(HOSTILE, "Model", {"data": HOSTILE}, [Figure(HOSTILE, HOSTILE, HOSTILE)], [HOSTILE])
        bottom = facts({"a key": HOSTILE}, {"b": HOSTILE}, time=("time", None), peak_memory_bytes=None)
        return render(tmp_path, title=HOSTILE, header=top, facts=bottom, content=Content())

    return made


def test_every_value_is_escaped_in_texts_and_attributes(page):
    made = page('<p title="{{ content.text }}">{{ content.text }}</p>')
    escaped = "&lt;script&gt;alert(&#34;1&#34;)&lt;/script&gt; &#39;&amp;"
    assert f'<p title="{escaped}">{escaped}</p>' in made
    assert f"<title>{escaped}</title>" in made
    assert f"<dt>{escaped}</dt><dd>{escaped}<small>{escaped}</small></dd>" in made
    assert "<script" not in made
    assert '"1"' not in made


def test_a_page_is_whole_and_loads_nothing(page):
    made = page("<p>text</p>")
    assert made.startswith("<!doctype html>")
    assert made.rstrip().endswith("</html>")
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in made
    for outside in ("http:", "https:", "@import", "<link", "url(", "src=", "href="):
        assert outside not in made


def test_a_section_has_its_title_and_how_to_read_it(page):
    call = '{% from "section.html.j2" import section %}{% call section("A title"CAPTION) %}inside{% endcall %}'
    made = re.sub(r"\s+", " ", page(call.replace("CAPTION", ', "How to read it."')))
    assert '<section> <h2>A title</h2> <p class="caption">How to read it.</p> inside' in made
    assert "<h2>A title</h2> inside" in re.sub(r"\s+", " ", page(call.replace("CAPTION", "")))


def test_a_name_that_the_content_lacks_is_an_error(page):
    with pytest.raises(jinja2.UndefinedError, match="no_such_name"):
        page("{{ no_such_name }}")


def test_a_recipe_s_template_may_extend_the_shared_ones(tmp_path):
    (tmp_path / "a.html.j2").write_text("own")
    names = environment(tmp_path).list_templates()
    assert {"a.html.j2", "page.html.j2"} <= set(names)


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_no_template_switches_escaping_off_or_names_an_address(path):
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"\|\s*safe|autoescape|Markup", text)
    assert not re.search(r"https?:|<script|<link|@import|url\(", text)


@pytest.mark.parametrize("path", [p for p in TEMPLATES if p.suffix == ".j2"], ids=lambda path: path.name)
def test_every_template_can_be_compiled_and_quotes_its_attributes(path):
    environment(path.parent).get_template(path.name)
    assert not re.search(r"<[^>{]*[\w-]+=\{\{", path.read_text(encoding="utf-8"))


def test_the_style_defines_each_colour_for_light_and_dark():
    style = (SHARED / "style.css").read_text(encoding="utf-8")
    light, dark = re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    assert "prefers-color-scheme: dark" in style[: style.index(dark)]
    colours = set(re.findall(r"(--[\w-]+):", light))
    assert colours == set(re.findall(r"(--[\w-]+):", dark))
    used = {name for path in [*TEMPLATES, RECIPES / "shared/report/charts.py"] for name in names_of(path)}
    assert used - {"--a"} <= colours


def names_of(path):
    return re.findall(r"var\((--[\w-]+)\)", path.read_text(encoding="utf-8"))


def test_nothing_but_the_page_itself_is_wider_than_a_phone():
    style = (SHARED / "style.css").read_text(encoding="utf-8")
    for selector, rules in re.findall(r"([^{}]+)\{([^{}]*)\}", style):
        for name, pixels in re.findall(r"(?<![\w-])(min-width|width): (\d+)px", rules):
            assert int(pixels) <= 190, (selector, name)
    for least in re.findall(r"minmax\(([^,]+(?:\([^)]*\))?[^,]*),", style):
        pixels = int(re.search(r"(\d+)px", least).group(1))
        assert pixels <= 190 or least.startswith("min("), least
