"""Renders a report: one HTML file that needs no network and follows the reader's light or dark theme.

Python hands plain data to the templates, which hold all HTML. Every value is escaped on its way into a page, so a class
name or a clinical text cannot become part of the page's code.
"""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from recipes.shared.report.tables import Interval

SHARED = Path(__file__).with_name("templates")
"""Templates of both recipes: the page, its style, and the macros of its parts."""


def render(folder: Path, *, template: str = "report.html.j2", **content: object) -> str:
    """Renders a page.

    Args:
        folder: The recipe's templates; those of `SHARED` can be imported and extended from there.
        template: Which of them.
        **content: What the templates show, by the name under which they read it.

    Raises:
        jinja2.UndefinedError: If a template reads a name that the content lacks.
    """
    return environment(folder).get_template(template).render(content)


def environment(folder: Path) -> Environment:
    """Returns templates that escape every value and refuse names that are not defined.

    Args:
        folder: The recipe's templates, which come before those of `SHARED`.
    """
    templates = Environment(
        loader=FileSystemLoader([folder, SHARED]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.tests["interval"] = lambda cell: isinstance(cell, Interval)
    return templates
