"""Safetensors files that all ranks write together and read in parts, each the rows that it holds.

A rank writes its rows at their place in the file of the whole tensor, so nothing is gathered anywhere.
"""

import json
import math
import os
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import torch
import torch.distributed as dist
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import safe_open  # pyright: ignore[reportUnknownVariableType]
from safetensors.torch import save
from torch import Tensor
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata
from torch.distributed.tensor import DTensor

from moekit.interop.hub.state import INDEX, files_of

T = TypeVar("T")

# Bytes that are copied to the host and written at once.
_PIECE = 64 * 2**20
# Written through: a network file system may otherwise write whole pages, with what it knows of the bytes of others.
_FLAGS = os.O_WRONLY | getattr(os, "O_DSYNC", 0) | getattr(os, "O_BINARY", 0)


class Chunk(NamedTuple):
    """A block of a tensor.

    Attributes:
        name: Of the tensor.
        offsets: Where the block begins in each dimension.
        sizes: Its shape.
    """

    name: str
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]


class Place(NamedTuple):
    """Where a tensor lies.

    Attributes:
        file: Name of the file.
        start: First byte of the tensor in it.
        tensor: Of its dtype and shape, on the meta device.
    """

    file: str
    start: int
    tensor: Tensor


def chunks_of(state: Mapping[str, Tensor]) -> dict[Chunk, Tensor]:
    """Returns the blocks of a state that this rank holds, with their values.

    Raises:
        ValueError: If a tensor is a sum that is still to be made over ranks.
    """
    chunks: dict[Chunk, Tensor] = {}
    for name, tensor in state.items():
        if not isinstance(tensor, DTensor):
            chunks[Chunk(name, (0,) * tensor.ndim, tuple(tensor.shape))] = tensor.detach()
            continue
        if any(placement.is_partial() for placement in tensor.placements):
            raise ValueError(f"{name} must be whole or divided on each rank, got placements {tensor.placements}.")
        blocks = cast(list[ChunkStorageMetadata], tensor.__create_chunk_list__())
        for block in blocks:
            chunks[Chunk(name, tuple(block.offsets), tuple(block.sizes))] = tensor.to_local().detach()
    return {chunk: values for chunk, values in chunks.items() if math.prod(chunk.sizes) > 0}


def chosen_writers(held: Sequence[Chunk], tensors: Mapping[str, Tensor], group: dist.ProcessGroup | None) -> set[Chunk]:
    """Returns the chunks that this rank writes: each is written by one of the ranks that hold it, by bytes alike.

    Args:
        held: Those of this rank.
        tensors: All that will be written, on the meta device.
        group: The ranks that write.

    Raises:
        ValueError: If the chunks of all ranks do not make up the tensors.
    """
    by_rank = _gathered(list(held), group)
    ranks_of: dict[Chunk, list[int]] = {}
    for rank, chunks in enumerate(by_rank):
        for chunk in chunks:
            ranks_of.setdefault(chunk, []).append(rank)
    elements = dict.fromkeys(tensors, 0)
    load, mine = [0] * len(by_rank), set[Chunk]()
    # Those of few ranks first: the others can even out what these leave.
    for chunk, ranks in sorted(ranks_of.items(), key=lambda each: (len(each[1]), -math.prod(each[0].sizes), each[0])):
        elements[chunk.name] = elements.get(chunk.name, 0) + math.prod(chunk.sizes)
        writer = min(ranks, key=lambda rank: (load[rank], rank))
        load[writer] += math.prod(chunk.sizes) * tensors[chunk.name].element_size() if chunk.name in tensors else 0
        if writer == _rank(group):
            mine.add(chunk)
    wrong = [name for name, number in elements.items() if name not in tensors or tensors[name].numel() != number]
    if wrong:
        raise ValueError(
            f"process_group must hold every value of the model once, as chunks or on all ranks alike, but not of "
            f"{', '.join(sorted(wrong)[:5])}: pass the group of all ranks that the model is divided among."
        )
    return mine


def write_together(
    folder: Path,
    tensors: Mapping[str, Tensor],
    chunks: Mapping[Chunk, Tensor],
    max_shard_size: int | str,
    group: dist.ProcessGroup | None,
) -> None:
    """Writes files as :func:`~moekit.interop.hub.state.write_state` would of whole tensors.

    All ranks must call it. The folder must be on a file system that they share.

    Args:
        folder: Where to write; it exists. Files of an earlier saving are replaced.
        tensors: All tensors by name, on the meta device, alike on all ranks.
        chunks: What this rank holds.
        max_shard_size: Largest size of one file of tensors.
        group: The ranks that write.

    Raises:
        ValueError: If the chunks of all ranks do not make up the tensors.
        OSError: On all ranks, if a file cannot be written on one.
    """
    mine = chosen_writers(list(chunks), tensors, group)
    split = split_torch_state_dict_into_shards(dict(tensors), max_shard_size=max_shard_size)
    places: dict[str, Place] = {}
    heads: dict[str, tuple[bytes, int]] = {}
    for file, names in split.filename_to_tensors.items():
        head, starts, end = _head({name: tensors[name] for name in names})
        heads[file] = head, end
        places |= {name: Place(file, start, tensors[name]) for name, start in starts.items()}
    with together(group) as first:
        if first:
            for path in [*folder.glob("model*.safetensors"), folder / INDEX]:
                path.unlink(missing_ok=True)
            for file, (head, end) in heads.items():
                with (folder / file).open("wb") as opened:
                    opened.write(head)
                    opened.truncate(end)
    with together(group), ExitStack() as stack:
        descriptors: dict[str, int] = {}
        for chunk in sorted(mine):
            place = places[chunk.name]
            if place.file not in descriptors:
                descriptors[place.file] = os.open(folder / place.file, _FLAGS)
                stack.callback(os.close, descriptors[place.file])
            write_chunk(descriptors[place.file], place, chunk, chunks[chunk])
    with together(group) as first:
        if first and split.is_sharded:
            index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
            (folder / INDEX).write_text(json.dumps(index, indent=2), encoding="utf-8")


@contextmanager
def together(group: dist.ProcessGroup | None) -> Generator[bool]:
    """Raises an error of one rank on all, and has all wait for the last one.

    Args:
        group: The ranks, all of which must enter it. Without any process group this process is alone.

    Yields:
        Whether this is the first rank.

    Raises:
        OSError: On the ranks without an error, if another rank has one.
    """
    error: BaseException | None = None
    try:
        yield _rank(group) == 0
    except BaseException as raised:
        error = raised
        raise
    finally:
        errors = _gathered(None if error is None else f"{type(error).__name__}: {error}", group)
        if error is None and any(errors):
            rank, message = next((rank, each) for rank, each in enumerate(errors) if each)
            raise OSError(f"rank {rank} could not write its part: {message}")


class Reader:
    """Reads blocks of the tensors of a folder.

    Args:
        folder: With one safetensors file, or several and an index.

    Raises:
        ValueError: If a file is missing.
    """

    def __init__(self, folder: Path) -> None:
        self._stack = ExitStack()
        self._file_of: dict[str, Any] = {}
        for file in files_of(folder):
            # No context manager: it stays open until close().
            opened: Any = self._stack.enter_context(cast(Any, safe_open(folder / file, framework="pt")))
            self._file_of |= dict.fromkeys(opened.keys(), opened)

    def __enter__(self) -> "Reader":
        """Returns itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Closes the files."""
        self._stack.close()

    def shapes(self) -> dict[str, Tensor]:
        """Returns all tensors on the meta device."""
        return {name: self._shape(file.get_slice(name)) for name, file in self._file_of.items()}

    def read(self, chunk: Chunk) -> Tensor:
        """Returns a block."""
        block = tuple(slice(start, start + size) for start, size in zip(chunk.offsets, chunk.sizes, strict=True))
        return self._file_of[chunk.name].get_slice(chunk.name)[block if block else ...]

    def _shape(self, part: Any) -> Tensor:
        shape: list[int] = part.get_shape()
        dtype: torch.dtype = part[:0].dtype if shape else part[...].dtype
        return torch.empty(shape, dtype=dtype, device="meta")


def _rank(group: dist.ProcessGroup | None) -> int:
    return dist.get_rank(group) if dist.is_initialized() else 0


def _gathered(mine: T, group: dist.ProcessGroup | None) -> list[T]:
    """Returns what each rank has."""
    if not dist.is_initialized():
        return [mine]
    each: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(each, mine, group=group)
    return each


def _head(tensors: Mapping[str, Tensor]) -> tuple[bytes, dict[str, int], int]:
    """Returns the beginning of a file, the first byte of each tensor in it, and its size.

    The format: https://huggingface.co/docs/safetensors, with wider numbers first, so that all are aligned.
    """
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    starts, end = dict[str, int](), 0
    for name, tensor in sorted(tensors.items(), key=lambda each: (-each[1].element_size(), each[0])):
        starts[name], size = end, tensor.numel() * tensor.element_size()
        entries[name] = {
            "dtype": _dtype(tensor.dtype),
            "shape": list(tensor.shape),
            "data_offsets": [end, end + size],
        }
        end += size
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    head = len(text).to_bytes(8, "little") + text
    return head, {name: len(head) + start for name, start in starts.items()}, len(head) + end


def _dtype(dtype: torch.dtype) -> str:
    """Returns the name that safetensors has for a dtype."""
    content = save({"x": torch.empty(0, dtype=dtype)})
    return json.loads(content[8:])["x"]["dtype"]


def write_chunk(descriptor: int, place: Place, chunk: Chunk, values: Tensor) -> None:
    """Writes the values of a block at their place in an open file."""
    size = place.tensor.element_size()
    flat = values.contiguous().view(-1)
    done = 0
    for start, length in _runs(chunk, tuple(place.tensor.shape)):
        for piece in range(0, length, _PIECE // size):
            part = flat[done + piece : done + min(piece + _PIECE // size, length)]
            content = memoryview(cast(Any, part.cpu().view(torch.uint8).numpy()))
            at = place.start + (start + piece) * size
            while content:
                written = os.pwrite(descriptor, content, at)
                content, at = content[written:], at + written
        done += length


def _runs(chunk: Chunk, shape: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """Returns the first element and the number of elements of each run of a block in the whole tensor."""
    whole = len(shape)
    while whole > 0 and chunk.sizes[whole - 1] == shape[whole - 1]:
        whole -= 1
    if whole == 0:
        yield 0, math.prod(shape)
        return
    # Dimensions before the last divided one are walked through; those behind it lie in one run.
    inner = math.prod(shape[whole:])
    length = chunk.sizes[whole - 1] * inner
    strides = [math.prod(shape[dim + 1 :]) for dim in range(whole)]
    first = sum(offset * stride for offset, stride in zip(chunk.offsets, strides, strict=False))
    outer = chunk.sizes[: whole - 1]
    for number in range(math.prod(outer)):
        start = first
        for dim in reversed(range(len(outer))):
            number, place = divmod(number, outer[dim])
            start += place * strides[dim]
        yield start, length
