"""The blocks of a model: the parts of which it has many in a row, such as the layers of a transformer."""

from collections.abc import Iterator

from torch import nn

_LISTS = (nn.ModuleList, nn.Sequential)


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """Returns the modules of lists (``ModuleList``, ``Sequential``, lists of lists) that have parts and parameters.

    Nothing is looked for inside a block. What a list holds is called as a module, so hooks on a block see every call.
    """
    return list(_walk(model, in_list=False))


def _walk(module: nn.Module, *, in_list: bool) -> Iterator[nn.Module]:
    is_list = type(module) in _LISTS
    if in_list and not is_list:
        if any(True for _ in module.children()) and any(True for _ in module.parameters()):
            yield module
        return
    for child in module.children():
        yield from _walk(child, in_list=is_list)
