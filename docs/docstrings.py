"""Reads the docstrings for the API pages: links for Sphinx roles, code blocks for examples."""

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:class|func|meth|data|mod|attr):`(~?)([\w.]+)`")
_EXAMPLE = re.compile(r"^Example:$", re.MULTILINE)


class Docstrings(griffe.Extension):
    """Rewrites each docstring before it is parsed."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrites the docstring of one object; griffe knows an examples section by the plural only."""
        if obj.docstring is not None:
            text = _ROLE.sub(_link, obj.docstring.value)
            obj.docstring.value = _EXAMPLE.sub("Examples:", text)


def _link(match: re.Match[str]) -> str:
    """A link where a page documents the name; plain code where none does."""
    short, target = match.groups()
    shown = target.rpartition(".")[2] if short else target
    return f'<autoref optional identifier="{target}"><code>{shown}</code></autoref>'
