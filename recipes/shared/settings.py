"""Settings that were kept as json, back as arguments of their dataclass."""

from dataclasses import fields
from typing import Any


def known_fields(kind: type, values: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a dataclass as json kept them: names that it knows, lists back to tuples."""
    names = {field.name for field in fields(kind)}
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items() if key in names}
