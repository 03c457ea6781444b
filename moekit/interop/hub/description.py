"""The json that rebuilds the parts of a model."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import nn

from moekit.__about__ import __version__
from moekit.interop.hub.check import absent_tensors, check_rebuilt
from moekit.interop.hub.decode import Decoder
from moekit.interop.hub.encode import Encoder, refuse
from moekit.interop.hub.registry import PARTS, Part, part_of

FILE = "moekit.json"
VERSION = 1


class Description(NamedTuple):
    """What a file tells of a model.

    Attributes:
        parts: Encoded parts by their name in the model; the model itself has the name ``""``.
        tied: Names of tensors that are those of other names.
    """

    parts: dict[str, Any]
    tied: dict[str, str]


def describe(model: nn.Module, *, within: bool = False) -> dict[str, Any]:
    """Encodes the parts of a model: those of moekit and registered ones that stand in no other part.

    Args:
        model: The model.
        within: Whether the model itself is none of them, whatever its class.

    Raises:
        ValueError: If there is none, or one cannot be rebuilt; the message names it.
    """
    parts = dict(_parts_within(model, "") if within else _parts_of(model, ""))
    if not parts:
        raise ValueError(
            f"model must be or hold parts of moekit, got a {type(model).__name__} without: save it by its own means."
        )
    encoder = Encoder()
    encoded = {name: encoder.part(part, name, name) for name, part in parts.items()}
    decoder = Decoder(encoded, device="meta", standing=parts.get)
    for name, part in parts.items():
        if "same_as" in encoded[name]:
            continue
        rebuilt = decoder.part(name)
        absent = absent_tensors(part, rebuilt)
        if absent:
            encoded[name]["without"] = absent
            for path in absent:
                owner, _, tensor = path.rpartition(".")
                setattr(rebuilt.get_submodule(owner), tensor, None)
        check_rebuilt(name, part, rebuilt)
    return encoded


def write_description(folder: Path, description: Description) -> None:
    """Writes the json in one step."""
    content = {"format": "moekit", "version": VERSION, "moekit": __version__, **description._asdict()}
    part = folder / f"{FILE}.part"
    part.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    part.replace(folder / FILE)


def read_description(folder: Path) -> Description:
    """Reads the json.

    Raises:
        ValueError: If it is missing, not of moekit, or of a newer version.
    """
    file = folder / FILE
    if not file.is_file():
        raise ValueError(
            f"source must hold {FILE}, as moekit.interop.hub.save_pretrained writes it, but {folder} does not."
        )
    try:
        content: Any = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} must be json, and cannot be read: {error}") from error
    if not isinstance(content, dict) or cast(dict[str, Any], content).get("format") != "moekit":
        raise ValueError(f'{file} must have the format "moekit", got another file.')
    values = cast(dict[str, Any], content)
    version = values.get("version")
    if not isinstance(version, int) or version > VERSION:
        raise ValueError(
            f"{file} must have a version up to {VERSION}, got {version!r}, which moekit {values.get('moekit')} wrote: "
            "install that version or a newer one."
        )
    parts, tied = values.get("parts"), values.get("tied")
    if not isinstance(parts, dict) or not isinstance(tied, dict) or not parts:
        raise ValueError(f"{file} must hold the objects parts and tied, got {sorted(values)}.")
    return Description(cast(dict[str, Any], parts), cast(dict[str, str], tied))


def build_parts(parts: dict[str, Any], model: nn.Module | None, device: torch.device) -> dict[str, nn.Module]:
    """Builds the parts, without values where nothing else is needed.

    Args:
        parts: Encoded parts by name.
        model: Where they will go; None where the model itself is a part.
        device: Device of what registered classes create.

    Returns:
        The parts by name.

    Raises:
        ValueError: If a part cannot be built, or the model has no such place.
    """
    # Parts of moekit have no tensors but those of their state.
    build_on = "meta" if all(_packaged(each) for each in parts.values()) else device
    decoder = Decoder(parts, device=build_on, standing=lambda name: _module_at(model, name))
    if "" in parts and model is not None:
        raise ValueError(
            f"model must be left out for files that hold a whole part, got a {type(model).__name__}: "
            "from_pretrained returns the part."
        )
    if "" not in parts and model is None:
        raise ValueError(
            f"model must be the model whose parts are {', '.join(parts)}, built as before it was saved, got None: "
            "the file describes the parts alone."
        )
    absent = [name for name in parts if name and _module_at(model, name) is None]
    if absent:
        raise ValueError(
            f"model must have the modules {', '.join(absent)}, in whose places parts stood when it was saved, "
            f"got a {type(model).__name__} without: build it as before."
        )
    return {name: decoder.part(name) for name in parts}


def put(model: nn.Module, parts: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Puts modules into a model by name, and returns those that they replace."""
    replaced = {name: model.get_submodule(name) for name in parts}
    for name, part in parts.items():
        owner, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(owner), attribute, part)
    return replaced


def _packaged(encoded: object) -> bool:
    """Returns whether all classes within are of moekit or torch."""
    if isinstance(encoded, list):
        return all(_packaged(each) for each in cast(list[object], encoded))
    if not isinstance(encoded, dict):
        return True
    values = cast(dict[str, object], encoded)
    name = values.get("part")
    known = PARTS.get(name) if isinstance(name, str) else None
    return (known is None or known.packaged) and all(_packaged(each) for each in values.values())


def _parts_of(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    known = part_of(module)
    if known is not None and not known.name.startswith("torch."):
        yield name, module
        return
    if known is None and any(type(module) is not part.kind and _is_kind(module, part) for part in PARTS.values()):
        refuse(
            name or type(module).__name__,
            f"is of the class {type(module).__qualname__}, a subclass that no file can name",
            "register it by moekit.interop.hub.register_part",
        )
    yield from _parts_within(module, name)


def _parts_within(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    # Not named_children, which leaves out the second name of a module.
    for child, each in cast(dict[str, nn.Module | None], vars(module)["_modules"]).items():
        if each is not None:
            yield from _parts_of(each, f"{name}.{child}" if name else child)


def _is_kind(module: nn.Module, part: Part) -> bool:
    return part.name.startswith("moekit.") and isinstance(module, part.kind)


def _module_at(model: nn.Module | None, name: str) -> nn.Module | None:
    if model is None or not name:
        return None
    try:
        return model.get_submodule(name)
    except AttributeError:
        return None
