"""What was rebuilt is what was saved, tensors aside: the classes, shapes and settings."""

from collections.abc import Iterable
from types import BuiltinFunctionType, FunctionType
from typing import Any, cast

from torch import Tensor, nn

from moekit.interop.hub.encode import refuse
from moekit.interop.hub.registry import part_of
from moekit_kernels.activations import Activation

_REMEDY = "undo the change, or register a class of your own that does it, by moekit.interop.hub.register_part"
# What torch keeps in every module.
_INTERNAL = frozenset(vars(nn.Module())) | {"_is_full_backward_hook", "call_super_init"}
_MISSING = object()
_PLAIN = (bool, int, float, str, Activation, FunctionType, BuiltinFunctionType)


def absent_tensors(module: nn.Module, rebuilt: nn.Module) -> list[str]:
    """Returns the names of the tensors that a module has not, although its constructor makes them."""
    modules = _modules_of(module)
    return [
        f"{path}.{name}" if path else name
        for path, each in _modules_of(rebuilt).items()
        for name, tensor in _tensors_of(each).items()
        if path in modules and tensor is not None and _tensors_of(modules[path]).get(name, _MISSING) is None
    ]


def check_rebuilt(place: str, module: nn.Module, rebuilt: nn.Module) -> None:
    """Checks that what was rebuilt of a file would be the module again, once it has its tensors.

    Args:
        place: Name of the module in the model, for messages.
        module: The module that is saved.
        rebuilt: What its description gives.

    Raises:
        ValueError: Naming the first module within, and what of it is not described.
    """
    mine, theirs = _modules_of(module), _modules_of(rebuilt)
    for path, each in mine.items():
        within = f"{place}.{path}" if place and path else place or path or type(module).__name__
        if path not in theirs:
            refuse(within, f"is a {_kind(each)} that is not built with what holds it", _REMEDY)
        if type(each) is not type(theirs[path]):
            refuse(within, f"is a {_kind(each)} in place of a {_kind(theirs[path])}", _REMEDY)
        _check_tensors(within, each, theirs[path])
        _check_attributes(within, each, theirs[path])
    missing = [path for path in theirs if path not in mine]
    if missing:
        refuse(place or type(module).__name__, f"lacks {', '.join(missing)}", _REMEDY)


def _check_tensors(place: str, module: nn.Module, rebuilt: nn.Module) -> None:
    mine, theirs = _shapes_of(module), _shapes_of(rebuilt)
    different = [name for name in mine.keys() | theirs.keys() if mine.get(name) != theirs.get(name)]
    if different:
        shown = ", ".join(
            f"{name} {mine.get(name, 'absent')} and not {theirs.get(name, 'absent')}" for name in sorted(different)
        )
        refuse(place, f"has other tensors than its constructor makes: {shown}", _REMEDY)


def _check_attributes(place: str, module: nn.Module, rebuilt: nn.Module) -> None:
    known = part_of(module)
    if known is not None and not known.packaged:
        return
    mine, theirs = vars(module), vars(rebuilt)
    if "forward" in mine:
        refuse(place, "has a forward of its own", _REMEDY)
    # Other attributes are those of tools, such as torch.compile, that no part reads.
    for name in sorted(theirs.keys() - _INTERNAL):
        # A bias may be None as an attribute or as a parameter.
        before, after = mine.get(name, getattr(module, name, _MISSING)), theirs[name]
        if before is after or not (_is_plain(before) or _is_plain(after)):
            continue
        if type(before) is not type(after) or before != after:
            refuse(place, f"has {name}={_text(before)}, where its constructor makes {_text(after)}", _REMEDY)


def _is_plain(value: object) -> bool:
    # Not named tuples, in which layers keep what they know of a part: it was checked as the part's.
    if type(value) in (tuple, list, frozenset):
        return all(_is_plain(each) for each in cast(Iterable[object], value))
    return value is None or isinstance(value, _PLAIN)


def _text(value: object) -> str:
    return "nothing" if value is _MISSING else repr(value)


def _kind(module: nn.Module) -> str:
    return type(module).__name__


def _modules_of(module: nn.Module) -> dict[str, nn.Module]:
    # torch's own types leave it partially unknown.
    return dict(cast(Iterable[tuple[str, nn.Module]], module.named_modules(remove_duplicate=False)))


def _tensors_of(module: nn.Module) -> dict[str, Tensor | None]:
    # Those that are None too, which named_parameters leaves out.
    own = vars(module)
    return cast(dict[str, Any], own["_parameters"]) | cast(dict[str, Any], own["_buffers"])


def _shapes_of(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(each.shape) for name, each in _tensors_of(module).items() if each is not None}
