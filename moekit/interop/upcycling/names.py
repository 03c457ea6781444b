"""Patterns of module names, and replacing the modules that they name."""

import difflib
import re
from collections.abc import Iterable, Sequence
from typing import cast

from torch import nn

NUM_SUGGESTIONS = 5


def named_children(model: nn.Module) -> dict[str, nn.Module]:
    """Returns all modules in a model by name, without the model itself; a shared one by its first name."""
    # torch's own types leave it partially unknown.
    named = cast(Iterable[tuple[str, nn.Module]], model.named_modules())
    return {name: module for name, module in named if name}


def matching(model: nn.Module, where: str | Sequence[str]) -> dict[str, nn.Module]:
    """Returns the modules whose names match a pattern.

    In a pattern ``*`` stands for any characters of one part of a name, ``?`` for one, ``**`` for any number of parts:
    ``"blocks.*.mlp"`` matches ``blocks.0.mlp`` but not ``blocks.0.adapter.mlp``, which ``"**.mlp"`` matches too.

    Args:
        model: The model.
        where: A pattern, or several.

    Raises:
        ValueError: If a pattern matches nothing, or a module lies within another one that matches.
    """
    patterns = [where] if isinstance(where, str) else list(where)
    modules = named_children(model)
    matched: dict[str, nn.Module] = {}
    if not patterns:
        raise ValueError("where must be a pattern of module names or several, got none.")
    for pattern in patterns:
        expression = _expression(pattern)
        names = [name for name in modules if expression.fullmatch(name)]
        if not names:
            raise ValueError(
                f"where must match the names of modules, got {pattern!r}, which matches none of "
                f"{type(model).__name__}.{_suggestions(pattern, modules)}"
            )
        matched |= {name: modules[name] for name in names}
    for name in matched:
        outer = next((other for other in matched if name.startswith(other + ".")), None)
        if outer is not None:
            raise ValueError(f"where must not match a module within another, got {name!r} in {outer!r}: narrow it.")
    return matched


def replace_(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Puts a module wherever another one stands in a model."""
    for parent in list(model.modules()):
        for key, child in parent.named_children():
            if child is old:
                setattr(parent, key, new)


def _expression(pattern: str) -> re.Pattern[str]:
    parts, expression = pattern.split("."), ""
    for place, part in enumerate(parts, start=1):
        if part == "**":
            expression += r"(?:[^.]+\.)*" if place < len(parts) else r"[^.]+(?:\.[^.]+)*"
        else:
            expression += re.escape(part).replace(r"\*", "[^.]*").replace(r"\?", "[^.]") + (
                r"\." if place < len(parts) else ""
            )
    return re.compile(expression)


def _suggestions(pattern: str, names: Iterable[str]) -> str:
    templates = list(dict.fromkeys(re.sub(r"(?<=\.)\d+(?=\.|$)|^\d+(?=\.|$)", "*", name) for name in names))
    last = pattern.rsplit(".", 1)[-1]
    near = [each for each in templates if each.rsplit(".", 1)[-1] == last and last not in ("*", "**")]
    near += difflib.get_close_matches(pattern, templates, n=NUM_SUGGESTIONS, cutoff=0.4)
    near = list(dict.fromkeys(near))[:NUM_SUGGESTIONS]
    return f" Near names: {', '.join(map(repr, near))}." if near else ""
