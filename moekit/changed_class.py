"""Modules that change what they compute and nothing else: by another class in the place of their own."""

from functools import cache
from typing import Any

from torch import nn


class ChangedClass(nn.Module):
    """What a module of a changed class is, before the class that it had.

    Its class is made of both. It is pickled and copied by these, as it has no name of its own.
    """

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """Returns how to make it again."""
        changes: list[type[ChangedClass]] = []
        kind = type(self)
        while issubclass(kind, ChangedClass):
            first, kind = kind.__bases__
            changes.append(first)
        return _new, (changes, kind), self.__dict__


def _new(changes: list[type[ChangedClass]], own: type[nn.Module]) -> nn.Module:
    """Returns a module without state of class ``own``, changed by the last of ``changes`` first."""
    for first in reversed(changes):
        own = changed_class(first, own)
    return own.__new__(own)


@cache
def changed_class(first: type[ChangedClass], own: type[nn.Module]) -> type[nn.Module]:
    """Returns the class of a module of class ``own`` while it is changed."""
    return type(f"{first.__name__}{own.__name__}", (first, own), {"__module__": own.__module__})
