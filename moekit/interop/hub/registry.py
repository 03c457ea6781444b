"""What a file may name: classes of parts and functions, registered one by one.

Nothing is imported, looked up in a module or unpickled by a name that stands in a file.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar, cast, overload

from torch import nn

Arguments = dict[str, Any]
Reader = Callable[[Any], Any]
Thing = TypeVar("Thing", bound=Callable[..., Any])

POSITIONAL = "*"
"""The key of arguments without names, as ``nn.Sequential`` takes them."""

PLACE = ("device", "dtype")
"""Arguments that no file holds: tensors keep their dtype, and the device is that of the loading."""

_RESERVED = ("moekit.", "torch.")


class Part(NamedTuple):
    """A class of modules that can be rebuilt.

    Attributes:
        name: Stands for the class in files.
        kind: The class; a subclass is another part.
        arguments: Reads the arguments of the constructor off a module.
        packaged: Whether it is a class of moekit or torch, whose plain attributes all come from the constructor or from
            settings that are arguments of it.
        build: Builds a module of the class: the constructor, unless the class was changed after.
        in_place_of: Returns the module in whose place the part stands, which the constructor takes as ``dense``;
            None for a part that can be built by itself.
        settings: Names of attributes that are set afterwards, beyond what the arguments say.
    """

    name: str
    kind: type[nn.Module]
    arguments: Callable[[Any], Arguments]
    packaged: bool
    build: Callable[..., nn.Module]
    in_place_of: Reader | None = None
    settings: tuple[str, ...] = ()

    def accepts(self, name: str) -> bool:
        """Returns whether the constructor takes an argument of a file."""
        if name in PLACE or (name == "dense" and self.in_place_of is not None):
            return False
        if name == POSITIONAL:
            return any(each.kind is each.VAR_POSITIONAL for each in self.parameters.values())
        return self._takes(name)

    @property
    def parameters(self) -> Mapping[str, inspect.Parameter]:
        """The parameters of ``build``."""
        return parameters_of(self.build)

    @property
    def takes_device(self) -> bool:
        """Whether the constructor takes ``device``."""
        return self._takes("device")

    @property
    def required(self) -> list[str]:
        """The names of the arguments without a default."""
        variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        return [
            name for name, each in self.parameters.items() if each.default is each.empty and each.kind not in variable
        ]

    def _takes(self, name: str) -> bool:
        # In classes of moekit, others are those of the class that they extend, or device and dtype.
        any_name = self.packaged and any(each.kind is each.VAR_KEYWORD for each in self.parameters.values())
        return name in self.parameters or any_name


def parameters_of(build: Callable[..., nn.Module]) -> Mapping[str, inspect.Parameter]:
    """Returns the parameters of a constructor; none where it takes anything and ignores it."""
    if build is nn.Identity or (isinstance(build, type) and build.__init__ is nn.Module.__init__):
        return {}
    return inspect.signature(build).parameters


PARTS: dict[str, Part] = {}
FUNCTIONS: dict[str, Callable[..., Any]] = {}
RECORDS: dict[str, type[Any]] = {}
"""Dataclasses that are arguments of parts."""


def part_of(module: nn.Module) -> Part | None:
    """Returns the part whose class is that of a module; None if the class is not registered."""
    return next((part for part in PARTS.values() if part.kind is type(module)), None)


def name_of_function(function: object) -> str | None:
    """Returns the name of a registered function; None of another."""
    return next((name for name, each in FUNCTIONS.items() if each is function), None)


def arguments_of(kind: type[nn.Module], readers: Mapping[str, Reader] | None = None) -> Callable[[Any], Arguments]:
    """Returns a function that reads the arguments of a constructor off a module.

    Args:
        kind: The class.
        readers: How to read those arguments that are no attributes of the same name.
    """
    variable = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    names = [each.name for each in parameters_of(kind).values() if each.kind not in variable and each.name not in PLACE]
    own = readers or {}
    return lambda module: {name: _read(module, name, own.get(name)) for name in names}


def attributes_of(*names: str) -> Callable[[Any], Arguments]:
    """Returns a function that reads attributes; of ``bias``, whether there is one."""
    readers: dict[str, Reader] = {"bias": lambda module: module.bias is not None}
    return lambda module: {name: _read(module, name, readers.get(name)) for name in names}


def _read(module: Any, name: str, reader: Reader | None) -> Any:
    try:
        return getattr(module, name) if reader is None else reader(module)
    except (AttributeError, TypeError, IndexError) as error:
        raise ValueError(f"whose argument {name} cannot be read from it ({error})") from error


@overload
def register_part(
    part: Thing, *, name: str | None = None, arguments: Callable[[Any], Arguments] | None = None
) -> Thing: ...
@overload
def register_part(
    part: None = None, *, name: str | None = None, arguments: Callable[[Any], Arguments] | None = None
) -> Callable[[Thing], Thing]: ...
def register_part(
    part: Thing | None = None, *, name: str | None = None, arguments: Callable[[Any], Arguments] | None = None
) -> Thing | Callable[[Thing], Thing]:
    """Registers a class of modules or a function, so that files can name it; also a decorator.

    Register it before saving and, in the process that loads, before loading. A module is rebuilt by its constructor,
    with arguments read from its attributes of the same names; tensors come from the file.

    Args:
        part: A subclass of ``nn.Module``, or a function.
        name: Stands for it in files; its ``__name__`` by default. Those of moekit and torch begin with theirs.
        arguments: Of a class: returns the arguments of the constructor that rebuilds a module, where they are not its
            attributes.

    Returns:
        The class or function; without one, a decorator.

    Raises:
        ValueError: If it is neither, the name is taken or reserved, or a function comes with ``arguments``.

    Example:
        >>> from torch import nn
        >>> from moekit.interop.hub import register_part
        >>> @register_part(name="example.Times")
        ... class Times(nn.Module):
        ...     def __init__(self, factor: float) -> None:
        ...         super().__init__()
        ...         self.factor = factor
        ...     def forward(self, x):
        ...         return self.factor * x
    """
    if part is None:
        return lambda decorated: register_part(decorated, name=name, arguments=arguments)
    thing = cast(Any, part)  # which isinstance would narrow
    kind: type[nn.Module] | None = thing if isinstance(thing, type) and issubclass(thing, nn.Module) else None
    if kind is None and (isinstance(thing, type | nn.Module) or not callable(thing)):
        raise ValueError(f"part must be a subclass of nn.Module or a function, got {thing!r}.")
    name = name or cast(str, getattr(cast(object, part), "__name__", ""))
    if not name or name.startswith(_RESERVED):
        raise ValueError(f"name must not be empty or begin with {' or '.join(_RESERVED)}, got {name!r}.")
    known: object = PARTS[name].kind if name in PARTS else FUNCTIONS.get(name)
    if known is not None and known is not thing and _described(known) != _described(cast(object, part)):
        raise ValueError(f"name must be unique, but {name!r} stands for {known!r}: choose another name.")
    if kind is not None:
        add_part(kind, name, arguments or arguments_of(kind), packaged=False)
    elif arguments is not None:
        raise ValueError(f"arguments are those of a class, got the function {thing!r}: leave them out.")
    else:
        FUNCTIONS[name] = part
    return part


def add_part(
    kind: type[nn.Module],
    name: str,
    arguments: Callable[[Any], Arguments],
    *,
    packaged: bool = True,
    build: Callable[..., nn.Module] | None = None,
    in_place_of: Reader | None = None,
    settings: tuple[str, ...] = (),
) -> None:
    """Registers a class; see :class:`Part`."""
    PARTS[name] = Part(name, kind, arguments, packaged, build or kind, in_place_of, settings)


def _described(part: object) -> tuple[str, str]:
    # The same class or function, defined again, as in a notebook.
    return getattr(part, "__module__", ""), getattr(part, "__qualname__", repr(part))
