"""Reads the files of releases without running anything of theirs, and loads them name by name."""

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from recipes.shared.encoders.hub import first_line

_SHOWN = 3


def read_state(path: Path, option: str = "--model") -> dict[str, Tensor]:
    """Reads a state dict of ``torch.save`` or safetensors: tensors and nothing else.

    The entry ``state_dict`` of a training checkpoint is taken, and the prefix ``module.`` of distributed training is
    taken off. Objects that such a file holds besides (a Lightning file has its settings) are not built: what stands for
    them is empty.

    Args:
        path: The file.
        option: What names it on the command line.

    Raises:
        ValueError: If the file is missing, cannot be read, or holds no state dict.
    """
    content = read_tensors(path, option)
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    tensors = {str(name): value for name, value in content.items()} if isinstance(content, Mapping) else {}
    others = [name for name, value in tensors.items() if not isinstance(value, Tensor)]
    if not tensors or others:
        raise ValueError(f"{path} holds no state dict: expected names and tensors ({option}).")
    if all(name.startswith("module.") for name in tensors):
        return {name.removeprefix("module."): value for name, value in tensors.items()}
    return tensors


def read_tensors(path: Path, option: str = "--model") -> Any:
    """Reads whatever tensors a file holds, in the containers that they lie in; see :func:`read_state`."""
    if not path.is_file():
        raise ValueError(f"{path} does not exist, expected a file of weights ({option}).")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError:
            return _without_objects(path)
    except Exception as error:
        raise ValueError(f"{path} cannot be read as a file of weights: {first_line(error)} ({option}).") from error


def load_parts(
    state: Mapping[str, Tensor], parts: Mapping[str, nn.Module], what: str, *, ignored: Sequence[str] = ()
) -> None:
    """Loads a state dict into modules, each under its prefix.

    Buffers that recent versions of transformers compute (``position_ids``) may stand in the file.

    Args:
        state: The file's tensors.
        parts: Prefix, with its dot, to module.
        what: Whose file it is, for the error.
        ignored: Prefixes of names that have no use here.

    Raises:
        ValueError: If a name is missing or unexpected, or a shape another; the message names some.
    """
    wanted = {prefix + name: value for prefix, part in parts.items() for name, value in part.state_dict().items()}
    given = {
        name: value
        for name, value in state.items()
        if name in wanted or not (name.endswith(".position_ids") or name.startswith(tuple(ignored)))
    }
    wrong = {
        "missing": sorted(wanted.keys() - given.keys()),
        "unexpected": sorted(given.keys() - wanted.keys()),
        "of another shape": sorted(
            f"{name} {tuple(given[name].shape)} for {tuple(wanted[name].shape)}"
            for name in wanted.keys() & given.keys()
            if given[name].shape != wanted[name].shape
        ),
    }
    if any(wrong.values()):
        told = "; ".join(
            f"{len(names)} {kind}: {', '.join(names[:_SHOWN])}{', ...' if len(names) > _SHOWN else ''}"
            for kind, names in wrong.items()
            if names
        )
        raise ValueError(f"{what} does not hold the weights that are expected: {told} (--model).")
    for prefix, part in parts.items():
        own = {
            name.removeprefix(prefix): value.float() if value.is_floating_point() else value
            for name, value in given.items()
            if name.startswith(prefix)
        }
        part.load_state_dict({name: own[name] for name in part.state_dict()})


class _Nothing:
    """Stands for an object of any class: built of anything, keeps nothing."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        """Keeps nothing."""

    def extend(self, values: Any) -> None:
        """Keeps nothing."""


class _Tensors(pickle.Unpickler):
    """Builds tensors and plain containers; every other class and function is replaced by :class:`_Nothing`.

    Args:
        archive: What ``torch.save`` wrote since version 1.6.
        folder: The name of the archive's folder.
    """

    def __init__(self, archive: zipfile.ZipFile, folder: str) -> None:
        super().__init__(io.BytesIO(archive.read(f"{folder}/data.pkl")))
        self.archive, self.folder = archive, folder

    def find_class(self, module: str, name: str) -> Any:
        """Returns what builds a tensor, or nothing."""
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return torch._utils._rebuild_tensor_v2
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return lambda data, *_: data
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch" and name.endswith("Storage"):
            return name
        return _Nothing

    def persistent_load(self, pid: Any) -> Any:
        """Reads the numbers of a tensor."""
        kind, storage_type, key = pid[:3]
        if kind != "storage" or not isinstance(storage_type, str):
            raise pickle.UnpicklingError(f"it refers to {kind!r}, which is no tensor")
        names = {"BFloat16Storage": torch.bfloat16, "HalfStorage": torch.half, "LongStorage": torch.long}
        names |= {"FloatStorage": torch.float, "DoubleStorage": torch.double, "IntStorage": torch.int}
        names |= {"BoolStorage": torch.bool, "ByteStorage": torch.uint8, "CharStorage": torch.int8}
        numbers = self.archive.read(f"{self.folder}/data/{key}")
        storage = torch.UntypedStorage(len(numbers))
        if numbers:
            storage.copy_(torch.frombuffer(bytearray(numbers), dtype=torch.uint8).untyped_storage())
        return torch.storage.TypedStorage(wrap_storage=storage, dtype=names[storage_type], _internal=True)


def _without_objects(path: Path) -> Any:
    if not zipfile.is_zipfile(path):
        raise ValueError("it holds objects besides tensors, in the form before torch 1.6, which is not read")
    with zipfile.ZipFile(path) as archive:
        folder = next(name for name in archive.namelist() if name.endswith("data.pkl")).rpartition("/")[0]
        return _Tensors(archive, folder).load()
