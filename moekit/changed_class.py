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
        first, own = type(self).__bases__
        return _new, (first, own), self.__dict__


def _new(first: type[ChangedClass], own: type[nn.Module]) -> nn.Module:
    kind = changed_class(first, own)
    return kind.__new__(kind)


@cache
def changed_class(first: type[ChangedClass], own: type[nn.Module]) -> type[nn.Module]:
    """Returns the class of a module of class ``own`` while it is changed."""
    return type(f"{first.__name__}{own.__name__}", (first, own), {"__module__": own.__module__})
