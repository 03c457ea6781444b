"""Parts from json."""

from collections.abc import Callable, Mapping
from typing import Any, NoReturn, cast

import torch
from torch import nn

from moekit.interop.hub.activations import decode_activation
from moekit.interop.hub.registry import FUNCTIONS, PARTS, POSITIONAL, RECORDS, Part

Device = torch.device | str | None

_DTYPES = {str(each).removeprefix("torch."): each for each in vars(torch).values() if isinstance(each, torch.dtype)}


class Decoder:
    """Builds the parts of a json object, each once.

    Args:
        parts: Encoded parts by their name in the model.
        device: Device of the parameters that parts create; their own choice by default.
        standing: Returns the module that stands at a name of the model, for parts that were built of one.

    Raises:
        ValueError: From its methods, if the json holds what this version cannot build.
    """

    def __init__(
        self,
        parts: Mapping[str, Any],
        *,
        device: Device = None,
        standing: Callable[[str], nn.Module | None] = lambda _: None,
    ) -> None:
        self._parts = parts
        self._device = device
        self._standing = standing
        self._built: dict[str, nn.Module | None] = {}

    def part(self, name: str) -> nn.Module:
        """Returns the part of a name."""
        module = self.value(self._parts[name], name)
        if not isinstance(module, nn.Module):
            _refuse(name, f"is no part but {self._parts[name]!r}")
        return module

    def value(self, encoded: Any, location: str) -> Any:
        """Returns what stands at a location of the json."""
        if encoded is None or isinstance(encoded, bool | int | float | str):
            return encoded
        if not isinstance(encoded, dict) or not encoded:
            _refuse(location, f"is {encoded!r}, which has no meaning in version 1")
        values = cast(dict[str, Any], encoded)
        form = next((key for key in _FORMS if key in values), None)
        if form is None:
            _refuse(location, f"is an object of {', '.join(map(repr, values))}, of a form that is not known")
        try:
            return _FORMS[form](self, values, location)
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            _refuse(location, f"is not complete ({type(error).__name__}: {error})")

    def _module(self, encoded: dict[str, Any], location: str) -> nn.Module:
        if location in self._built:
            built = self._built[location]
            if built is None:
                _refuse(location, "holds itself")
            return built
        known = PARTS.get(encoded["part"])
        if known is None:
            _refuse(
                location,
                f"is a {encoded['part']!r}, which this process does not know: import the code that registers it by "
                "moekit.interop.hub.register_part, or install the version of moekit that saved it",
            )
        self._built[location] = None
        stated = encoded["arguments"]
        unknown = [name for name in stated if not known.accepts(name)]
        if unknown:
            _refuse(location, f"has arguments that {known.name} does not have: {', '.join(unknown)}")
        arguments = {name: self.value(each, f"{location}/arguments/{name}") for name, each in stated.items()}
        self._built[location] = module = self._build(known, arguments, location)
        for name in known.settings:
            setattr(module, name, self.value(encoded["settings"][name], f"{location}/settings/{name}"))
        for path in encoded.get("without", []):
            owner, _, name = path.rpartition(".")
            setattr(module.get_submodule(owner), name, None)
        return module

    def _build(self, known: Part, arguments: dict[str, Any], location: str) -> nn.Module:
        positional = arguments.pop(POSITIONAL, ())
        if known.takes_device:
            arguments["device"] = self._device
        if known.in_place_of is not None:
            arguments["dense"] = self._dense(known, location)
        if "dtype" in known.required:
            arguments["dtype"] = None  # that of the file's tensors, which take the place of those made here
        missing = [name for name in known.required if name not in arguments]
        if missing:
            _refuse(location, f"lacks the arguments {', '.join(missing)} of {known.name}")
        try:
            return known.build(*positional, **arguments)
        except (ValueError, TypeError, RuntimeError, AttributeError) as error:
            raise ValueError(f"the file's part {_shown(location)} cannot be built: {error}") from error

    def _dense(self, known: Part, location: str) -> nn.Module:
        standing = self._standing(location)
        if standing is None:
            _refuse(location, f"is a {known.name}, which stands in place of a module of a model: pass that model")
        assert known.in_place_of is not None
        return known.in_place_of(standing) if type(standing) is known.kind else standing

    def _same(self, encoded: dict[str, Any], location: str) -> nn.Module:
        target: str = encoded["same_as"]
        # The longest name of a part that begins the location, since names of modules may be any.
        names = [each for each in self._parts if target == each or target.startswith(f"{each}/")]
        name = max(names, key=len) if names else target
        original: Any = self._parts[name]
        for key in target[len(name) + 1 :].split("/") if target != name else ():
            original = original[int(key) if isinstance(original, list) else key]
        return self._module(original, target)

    def _function(self, encoded: dict[str, Any], location: str) -> Callable[..., Any]:
        name = encoded["function"]
        if name not in FUNCTIONS:
            _refuse(
                location, f"is the function {name!r}, which this process does not know: register it by register_part"
            )
        return FUNCTIONS[name]

    def _items(self, encoded: dict[str, Any], location: str) -> list[Any]:
        key = "tuple" if "tuple" in encoded else "list"
        return [self.value(each, f"{location}/{key}/{index}") for index, each in enumerate(encoded[key])]

    def _tuple(self, encoded: dict[str, Any], location: str) -> tuple[Any, ...]:
        return tuple(self._items(encoded, location))

    def _mapping(self, encoded: dict[str, Any], location: str) -> dict[str, Any]:
        return {key: self.value(each, f"{location}/mapping/{key}") for key, each in encoded["mapping"].items()}

    def _record(self, encoded: dict[str, Any], location: str) -> Any:
        if encoded["record"] not in RECORDS:
            _refuse(location, f"is a {encoded['record']!r}, which this version does not know")
        return RECORDS[encoded["record"]](**self.value(encoded["fields"], f"{location}/fields"))

    def _activation(self, encoded: dict[str, Any], location: str) -> Any:
        try:
            return decode_activation(encoded)
        except ValueError as error:
            raise ValueError(f"the file's part {_shown(location)} cannot be built: {error}") from error

    def _tensor(self, encoded: dict[str, Any], location: str) -> torch.Tensor:
        return torch.tensor(encoded["tensor"], dtype=_DTYPES[encoded["dtype"]], device="cpu").view(encoded["shape"])

    def _dtype(self, encoded: dict[str, Any], location: str) -> torch.dtype:
        return _DTYPES[encoded["dtype"]]

    def _float(self, encoded: dict[str, Any], location: str) -> float:
        return float(encoded["float"])


# The first that is a key of the object: a tensor has a dtype too.
_FORMS: dict[str, Callable[[Decoder, dict[str, Any], str], Any]] = {
    "part": Decoder._module,  # pyright: ignore[reportPrivateUsage]
    "same_as": Decoder._same,  # pyright: ignore[reportPrivateUsage]
    "activation": Decoder._activation,  # pyright: ignore[reportPrivateUsage]
    "function": Decoder._function,  # pyright: ignore[reportPrivateUsage]
    "record": Decoder._record,  # pyright: ignore[reportPrivateUsage]
    "tensor": Decoder._tensor,  # pyright: ignore[reportPrivateUsage]
    "list": Decoder._items,  # pyright: ignore[reportPrivateUsage]
    "tuple": Decoder._tuple,  # pyright: ignore[reportPrivateUsage]
    "mapping": Decoder._mapping,  # pyright: ignore[reportPrivateUsage]
    "float": Decoder._float,  # pyright: ignore[reportPrivateUsage]
    "dtype": Decoder._dtype,  # pyright: ignore[reportPrivateUsage]
}


# Keys of the json that are no names of arguments.
_LEVELS = frozenset({"arguments", "list", "tuple", "mapping", "fields", "settings"})


def _shown(location: str) -> str:
    """Returns a location as the name of a part and its arguments."""
    keys = [
        key for key in location.split("/") if key not in ("arguments", "list", "tuple", "mapping", "fields", "settings")
    ]
    return ".".join(key for key in keys if key) or "(the model itself)"


def _refuse(location: str, what: str) -> NoReturn:
    raise ValueError(f"the file's part {_shown(location)} {what}.")
