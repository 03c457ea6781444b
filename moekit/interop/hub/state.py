"""Tensors of a model in safetensors files, in one or several."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import torch
from huggingface_hub import save_torch_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor, nn

WEIGHTS = "model.safetensors"
INDEX = f"{WEIGHTS}.index.json"

_SHOWN = 5
# Bytes, of torch's allocator on CPU.
_ALIGNMENT = 64


def state_of(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Returns the tensors of a model as files hold them, those of several names once.

    Returns:
        The tensors, contiguous and in memory of their own; and the names that are not among them, each with the name of
        the same tensor that is.

    Raises:
        ValueError: If the state holds anything but dense tensors with values.
    """
    kept, tied = tied_names(cast(dict[str, object], model.state_dict(keep_vars=True)))
    storages: set[int] = set()
    tensors: dict[str, Tensor] = {}
    for name, tensor in kept.items():
        if tensor.is_meta:
            raise ValueError(f"model must have values, got {name} on the meta device: load or initialise it first.")
        plain = tensor.detach()
        # Files hold no views: tensors that share memory without being the same are written apart.
        storage = plain.untyped_storage().data_ptr()
        shares = plain.numel() > 0 and (storage in storages or plain.untyped_storage().nbytes() != plain.nbytes)
        storages.add(storage)
        tensors[name] = plain.clone(memory_format=torch.contiguous_format) if shares else plain.contiguous()
    return tensors, tied


def tied_names(state: Mapping[str, object]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Returns the tensors of a state, those of several names once, and the other names with the first ones.

    Raises:
        ValueError: If the state holds anything but dense tensors.
    """
    first_of: dict[int, str] = {}
    tied: dict[str, str] = {}
    kept: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if id(tensor) in first_of:
            tied[name] = first_of[id(tensor)]
        else:
            first_of[id(tensor)] = name
            kept[name] = _checked(name, tensor)
    return kept, tied


def write_state(tensors: dict[str, Tensor], folder: Path, max_shard_size: int | str) -> None:
    """Writes tensors in place of those of an earlier saving."""
    save_torch_state_dict(tensors, folder, max_shard_size=max_shard_size)


def read_state(folder: Path, device: torch.device | str) -> dict[str, Tensor]:
    """Reads all tensors of a folder.

    Raises:
        ValueError: If a file is missing, is no safetensors file, or the index names files elsewhere.
    """
    state: dict[str, Tensor] = {}
    for name in files_of(folder):
        try:
            state |= {key: _aligned(tensor) for key, tensor in load_file(folder / name, device=str(device)).items()}
        except SafetensorError as error:
            raise ValueError(f"{folder / name} must be a safetensors file, and cannot be read: {error}") from error
    return state


def load_state(
    model: nn.Module, state: dict[str, Tensor], tied: Mapping[str, str], device: torch.device | None
) -> None:
    """Gives a model its tensors: those of the file in place of its own, of their dtype.

    Args:
        model: The model; its tensors may be on the meta device.
        state: The tensors.
        tied: Names of tensors that are those of other names.
        device: Where those go that are on the meta device, the others to where they are; None if all stay where they
            were read.

    Raises:
        ValueError: If names or shapes are not those of the model, before anything is changed.
    """
    own = cast(dict[str, object], model.state_dict(keep_vars=True))
    for name, kept in tied.items():
        if kept not in state or name in state:
            raise ValueError(f"tied must name tensors of the file, got {name!r} for {kept!r}.")
        state[name] = state[kept]
    _check_state(own, state)
    if device is not None:
        for name, tensor in own.items():
            there = cast(Tensor, tensor).device
            state[name] = state[name].to(device if there.type == "meta" else there)
        state |= {name: state[kept] for name, kept in tied.items()}
    model.load_state_dict(state, assign=True)
    tie(model, tied)


def tie(model: nn.Module, tied: Mapping[str, str]) -> None:
    """Gives tensors of two names, each with the other, one tensor again."""
    loaded = cast(dict[str, Tensor], model.state_dict(keep_vars=True))
    for name, kept in tied.items():
        if loaded[name] is not loaded[kept]:
            owner, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(owner), attribute, loaded[kept])


def _aligned(tensor: Tensor) -> Tensor:
    """Returns a tensor where an allocator would put it: in a file it lies anywhere, which makes products slower."""
    return tensor.clone() if tensor.data_ptr() % _ALIGNMENT else tensor


def files_of(folder: Path) -> list[str]:
    """Returns the names of the safetensors files of a folder, all of which exist.

    Raises:
        ValueError: If a file is missing, or the index names files elsewhere.
    """
    names = _names(folder)
    for name in names:
        if not (folder / name).is_file():
            raise ValueError(f"source must hold {name}, but {folder} does not: save or download it whole.")
    return names


def _names(folder: Path) -> list[str]:
    index = folder / INDEX
    if not index.is_file():
        return [WEIGHTS]
    try:
        names = cast(set[object], set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{index} must be the index of sharded safetensors files, and cannot be read: {error}"
        ) from error
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or "\\" in name or not name.endswith(".safetensors"):
            raise ValueError(f"{index} must name safetensors files of its own folder, got {name!r}.")
    return sorted(cast(set[str], names))


def _checked(name: str, tensor: object) -> Tensor:
    if not isinstance(tensor, Tensor):
        raise ValueError(f"model must have a state of tensors, got {name}, a {type(tensor).__name__}.")
    if type(tensor) not in (Tensor, nn.Parameter, nn.Buffer) or tensor.layout != torch.strided:
        raise ValueError(
            f"model must have plain dense tensors, got {name}, a {type(tensor).__name__} of layout {tensor.layout}: "
            "gather or dequantise it first."
        )
    return tensor


def _check_state(own: Mapping[str, object], state: Mapping[str, Tensor]) -> None:
    missing = [name for name in own if name not in state]
    unexpected = [name for name in state if name not in own]
    shapes = [
        f"{name} {tuple(state[name].shape)} and not {tuple(each.shape)}"
        for name, each in own.items()
        if name in state and isinstance(each, Tensor) and each.shape != state[name].shape
    ]
    problems = [
        f"{what}: {', '.join(names[:_SHOWN])}{f' and {len(names) - _SHOWN} more' if len(names) > _SHOWN else ''}"
        for what, names in (
            ("missing in the file", missing),
            ("unexpected in the file", unexpected),
            ("of another shape in the file", shapes),
        )
        if names
    ]
    if problems:
        raise ValueError(
            f"the file must hold the tensors of the model, but some are {'; '.join(problems)}. Nothing was loaded: "
            "pass the model that was saved, or one built by the same arguments."
        )
