"""Models whose parameters are divided among ranks: saved and loaded without one that holds them all."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from moekit.distributed.placed import placed_banks
from moekit.distributed.undivided import is_divided, undivided
from moekit.interop.hub.chunks import Chunk, Reader, chunks_of, together, write_together
from moekit.interop.hub.description import FILE, Description, describe, write_description
from moekit.interop.hub.state import tie, tied_names

__all__ = ["divide_and_fill", "fill", "give_memory", "is_divided", "save_divided", "shapes_of", "state_of_rank"]


def save_divided(
    model: nn.Module, folder: Path, max_shard_size: int | str, group: dist.ProcessGroup | None, *, within: bool
) -> None:
    """Writes what :func:`~moekit.interop.hub.folder.save_into` writes of a whole model; all ranks must call it."""
    whole = undivided(model)
    parts = describe(whole, within=within)
    tensors, tied = tied_names(cast(dict[str, object], whole.state_dict(keep_vars=True)))
    own = state_of_rank(model, tensors, tied)
    with together(group):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / FILE).unlink(missing_ok=True)
    write_together(folder, tensors, chunks_of(own), max_shard_size, group)
    with together(group) as first:
        if first:
            write_description(folder, Description(parts, tied))


def state_of_rank(model: nn.Module, tensors: Mapping[str, Tensor], tied: Mapping[str, str]) -> dict[str, Tensor]:
    """Returns the tensors that this rank has, in whole or in part, each once.

    Args:
        model: The divided model.
        tensors: Of the whole model.
        tied: Names of the others.

    Raises:
        ValueError: If it has others, or of other shapes.
    """
    state = cast(dict[str, Tensor], model.state_dict())
    for name, tensor in state.items():
        expected = tensors.get(tied.get(name, name))
        if expected is None or expected.shape != tensor.shape or tensor.is_meta:
            raise ValueError(
                f"model must have the state of the model before it was divided, with values, got {name} of shape "
                f"{tuple(tensor.shape)} on {tensor.device.type}: give a wrapper or a hook of the state dict up first."
            )
    return {name: tensor for name, tensor in state.items() if name in tensors}


def shapes_of(folder: Path) -> dict[str, Tensor]:
    """Returns all tensors of a folder, on the meta device."""
    with Reader(folder) as reader:
        return reader.shapes()


def divide_and_fill(
    model: nn.Module,
    divide: Callable[[nn.Module], object],
    folder: Path,
    tied: Mapping[str, str],
    device: torch.device,
) -> None:
    """Divides a model whose tensors are on the meta device, and reads the rows that this rank then holds.

    Args:
        model: The model.
        divide: See :func:`~moekit.interop.hub.folder.from_pretrained`.
        folder: With the files.
        tied: Names of tensors that stand in the file under other names.
        device: Where the tensors go.
    """
    divide(model)
    give_memory(model, tied, device)
    with Reader(folder) as reader:
        fill(model, lambda name, chunk: reader.read(chunk._replace(name=tied.get(name, name))))


def give_memory(model: nn.Module, tied: Mapping[str, str], device: torch.device) -> None:
    """Gives the tensors of a model's state that are on the meta device memory, without values.

    Args:
        model: The model, divided or not.
        tied: Names of tensors that are those of other names.
        device: Where the tensors go.

    Raises:
        ValueError: If a buffer without values is not in the state.
    """
    for path, module in cast(Iterable[tuple[str, nn.Module]], model.named_modules()):
        for name in vars(module)["_non_persistent_buffers_set"]:
            buffer: Tensor | None = vars(module)["_buffers"][name]
            if buffer is not None and buffer.is_meta:
                raise ValueError(
                    f"model must have values in buffers that no file holds, got {path}.{name} on the meta device: "
                    "create parameters alone there."
                )

    def with_values(tensor: Tensor) -> Tensor:
        return torch.empty_like(tensor, device=device) if tensor.is_meta else tensor

    model._apply(with_values)  # pyright: ignore[reportPrivateUsage]  (to_empty, of those without values alone)
    tie(model, tied)


@torch.no_grad()
def fill(model: nn.Module, read: Callable[[str, Chunk], Tensor]) -> None:
    """Copies into each tensor of a divided model the rows that this rank holds."""
    state = cast(dict[str, Tensor], model.state_dict())
    for name, tensor in state.items():
        for chunk in chunks_of({name: tensor}):
            local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
            local.copy_(read(name, chunk))
    if placed_banks(model):
        model.load_state_dict(state)  # theirs is a copy, in another order
