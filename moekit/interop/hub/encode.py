"""Parts as json."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NoReturn, cast

import torch
from torch import Tensor, nn

from moekit.interop.hub.activations import encode_activation
from moekit.interop.hub.registry import POSITIONAL, RECORDS, name_of_function, part_of
from moekit_kernels.activations import Activation

_REGISTER = (
    "register it by moekit.interop.hub.register_part, here and where it will be loaded, or take one of moekit's own"
)


class Encoder:
    """Turns parts into json, and remembers where each stands, so that one that stands twice is written once."""

    def __init__(self) -> None:
        self._location_of: dict[int, str] = {}

    def part(self, module: nn.Module, location: str, place: str) -> dict[str, Any]:
        """Returns a part as json.

        Args:
            module: The part.
            location: Its place in the json: keys, joined by ``/``.
            place: Its place in the model, for messages.

        Raises:
            ValueError: Naming the part that cannot be rebuilt, and what to do.
        """
        if id(module) in self._location_of:
            return {"same_as": self._location_of[id(module)]}
        known = part_of(module)
        shown = place or type(module).__name__
        if known is None:
            kind = f"{type(module).__module__}.{type(module).__qualname__}"
            wrapped = "; if it wraps a part, take the wrapper off first" if list(module.children()) else ""
            refuse(shown, f"is of the class {kind}, which no file can name", f"{_REGISTER}{wrapped}")
        self._location_of[id(module)] = location
        try:
            arguments = known.arguments(module)
        except ValueError as error:
            refuse(shown, f"is of the class {known.name}, {error}", "undo what was changed in it")
        encoded = {
            name: self.value(value, f"{location}/arguments/{name}", _within(place, name))
            for name, value in arguments.items()
        }
        settings = {
            name: self.value(getattr(module, name), f"{location}/settings/{name}", _within(place, name))
            for name in known.settings
        }
        return {"part": known.name, "arguments": encoded} | ({"settings": settings} if settings else {})

    def value(self, value: object, location: str, place: str) -> Any:
        """Returns an argument as json; see :meth:`part`."""
        if isinstance(value, nn.Module):
            return self.part(value, location, place)
        if isinstance(value, Activation):
            return encode_activation(value)
        if value is None or isinstance(value, bool | int | str):
            return value
        if isinstance(value, float):
            return value if math.isfinite(value) else {"float": str(value)}
        if isinstance(value, torch.dtype):
            return {"dtype": str(value).removeprefix("torch.")}
        if isinstance(value, list | tuple):
            return self._sequence(cast(list[object] | tuple[object, ...], value), location, place)
        if isinstance(value, Mapping):
            return self._mapping(cast(Mapping[object, object], value), location, place)
        if isinstance(value, Tensor):
            return _tensor(value)
        record = next((name for name, kind in RECORDS.items() if type(value) is kind), None)
        if record is not None:
            fields = {each.name: getattr(value, each.name) for each in dataclasses.fields(cast(Any, value))}
            return {"record": record, "fields": self.value(fields, f"{location}/fields", place)}
        name = name_of_function(value)
        if name is not None:
            return {"function": name}
        if callable(value):
            remedy = f"{_REGISTER}; an activation may also be a moekit.activations.Activation"
            refuse(place, f"is the function {getattr(value, '__qualname__', value)!s}, which no file can name", remedy)
        refuse(
            place, f"is a {type(value).__name__}, which json cannot hold", "use numbers, strings, sequences or parts"
        )

    def _sequence(self, value: list[object] | tuple[object, ...], location: str, place: str) -> Any:
        key = "tuple" if isinstance(value, tuple) else "list"
        items = [self.value(each, f"{location}/{key}/{index}", f"{place}[{index}]") for index, each in enumerate(value)]
        return {key: items}

    def _mapping(self, value: Mapping[object, object], location: str, place: str) -> Any:
        if not all(isinstance(key, str) and "/" not in key for key in value):
            refuse(place, f"has the keys {list(value)}", "use strings without a slash")
        items = {
            str(key): self.value(each, f"{location}/mapping/{key}", f"{place}[{key!r}]") for key, each in value.items()
        }
        return {"mapping": items}


def _within(place: str, name: str) -> str:
    return ".".join(each for each in (place, "" if name == POSITIONAL else name) if each)


def refuse(place: str, what: str, remedy: str) -> NoReturn:
    """Raises ``ValueError`` about a part of the model."""
    raise ValueError(f"model must consist of parts that can be rebuilt, but {place} {what}: {remedy}.")


def _tensor(tensor: Tensor) -> dict[str, Any]:
    values = tensor.detach().cpu()
    exact = values.double() if values.is_floating_point() else values
    dtype = str(tensor.dtype).removeprefix("torch.")
    return {"tensor": exact.flatten().tolist(), "dtype": dtype, "shape": list(tensor.shape)}
