"""Reads the docstrings for the API pages: links for Sphinx roles, code blocks for examples, shapes as strings."""

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:class|func|meth|data|mod|attr):`(~?)([\w.]+)`")
_EXAMPLE = re.compile(r"^Example:$", re.MULTILINE)
_SHAPED = ("Float", "Int", "Bool", "Shaped")


class Docstrings(griffe.Extension):
    """Rewrites each docstring before it is parsed."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrites the docstring of one object; griffe knows an examples section by the plural only."""
        if obj.docstring is not None:
            text = _ROLE.sub(_link, obj.docstring.value)
            obj.docstring.value = _EXAMPLE.sub("Examples:", text)
        if isinstance(obj, griffe.Function):
            for annotation in (obj.returns, *(parameter.annotation for parameter in obj.parameters)):
                _quote_shapes(annotation)
        elif isinstance(obj, griffe.Attribute):
            _quote_shapes(obj.annotation)


def _quote_shapes(annotation: griffe.Expr | str | None) -> None:
    """Makes the shapes of jaxtyping strings again: griffe reads ``"T *D"`` as a product and ``"N"`` as a name."""
    if not isinstance(annotation, griffe.Expr):
        return
    for part in annotation.iterate(flat=False):
        if part is not annotation:  # a name holds itself
            _quote_shapes(part)
    if isinstance(annotation, griffe.ExprSubscript) and str(annotation.left) in _SHAPED:
        elements = getattr(annotation.slice, "elements", None)
        if elements is not None and (isinstance(elements[1], griffe.Expr) or elements[1] == "..."):
            elements[1] = repr(str(elements[1]).replace(" * ", " *").replace(" + ", "+"))


def _link(match: re.Match[str]) -> str:
    """A link where a page documents the name; plain code where none does."""
    short, target = match.groups()
    shown = target.rpartition(".")[2] if short else target
    return f'<autoref optional identifier="{target}"><code>{shown}</code></autoref>'
