"""Where the files of ``transformers`` have the weights of each expert of a block.

Files may keep every expert apart, gate and value too, and transposed. What ``transformers`` does to a block's tensors
when it saves them is read off an example: one expert whose values are their own indices.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from moekit.interop.hub.chunks import Chunk, chunks_of
from moekit.interop.transformers._pieces import Piece
from moekit.interop.transformers._read import BlockContents


class BlockInModel(NamedTuple):
    """A sparse block and the layer in its place.

    Attributes:
        path: Of the block.
        layer: Name of the layer in the model.
        contents: Of the block.
        per_expert: The pieces that are divided among ranks.
    """

    path: str
    layer: str
    contents: BlockContents
    per_expert: list[Piece]


class ExpertPart(NamedTuple):
    """What the files have of one expert's weight, in one tensor.

    Attributes:
        piece: Name of the weight in the layer.
        key: Of the tensor, with a place for the number of the expert if each has one of its own.
        shape: Of the block.
        strides: Of the block in the weight of one expert.
        start: Its first element there.
    """

    piece: str
    key: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    start: int

    def chunk(self, expert: int, keys: Mapping[str, Tensor]) -> Chunk:
        """Returns the block of an expert."""
        if self.key in keys:
            rest = len(self.shape) - 1
            return Chunk(self.key, (expert * self.shape[0], *(0,) * rest), self.shape)
        return Chunk(self.key.replace("*", str(expert)), (0,) * len(self.shape), self.shape)


def in_files(like: Any, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns tensors as ``transformers`` would save them."""
    from transformers.core_model_loading import revert_weight_conversion

    return cast(dict[str, Tensor], revert_weight_conversion(like, dict(state)))


def of_experts(
    weight: Tensor, piece: Piece, parts: list[ExpertPart], tensors: Mapping[str, Tensor]
) -> dict[Chunk, Tensor]:
    """Returns what this rank holds of a weight of experts: blocks of the files, as views of it.

    Raises:
        ValueError: If it is divided otherwise than by experts.
    """
    views: dict[Chunk, Tensor] = {}
    for chunk, values in chunks_of({piece.name: weight}).items():
        if chunk.sizes[1:] != tuple(weight.shape[1:]) or not values.is_contiguous():
            raise ValueError(f"{piece.name} must be divided by experts alone, got a block {chunk.sizes[1:]} of each.")
        for place in range(chunk.sizes[0]):
            own = values[place]
            for part in parts:
                if part.piece == piece.name:
                    view = own.as_strided(part.shape, part.strides, own.storage_offset() + part.start)
                    views[part.chunk(chunk.offsets[0] + place, tensors)] = view
    return views


@torch.no_grad()
def parts_of_experts(block: BlockInModel, like: Any, tensors: Mapping[str, Tensor]) -> list[ExpertPart]:
    """Returns where the files have the weights of each expert.

    Raises:
        ValueError: If the files have them in no form that is understood.
    """
    experts = block.contents.sizes["E"]
    example: dict[str, Tensor] = {}
    first_of: dict[str, int] = {}
    end = 0
    for piece in block.per_expert:
        ids = torch.arange(_size_of_expert(piece), device="cpu") + end
        first_of[piece.name], end = end, end + ids.numel()
        for (name, source), view, own in zip(piece.sources.items(), piece.views, _split(ids, piece), strict=True):
            rows = source.shape[0] // experts
            blank = torch.full((rows, *source.shape[1:]), -1, device="cpu")
            tensor = example.setdefault(f"{block.path}.{name}", blank)
            if source.shape[0] != rows * experts or view.stride(0) != tensor.numel():
                raise ValueError(f"{block.path}.{name} must have the rows of one expert after those of another.")
            tensor.as_strided(own.shape, view.stride(), view.storage_offset()).copy_(own)
    parts: list[ExpertPart] = []
    for key, ids in in_files(like, example).items():
        shape, start, strides = _affine(key, ids)
        name = max((each for each in first_of if first_of[each] <= start), key=lambda each: first_of[each])
        numbered = _numbered(key, shape, experts, tensors)
        parts.append(ExpertPart(name, numbered, shape, strides, start - first_of[name]))
    return parts


def _size_of_expert(piece: Piece) -> int:
    return sum(view[0].numel() for view in piece.views)


def _split(ids: Tensor, piece: Piece) -> tuple[Tensor, ...]:
    """Returns the values of one expert as its part of each view."""
    shape = list(piece.views[0].shape)
    shape[0] = 1
    if len(piece.views) == 1:
        return (ids.view(shape),)
    shape[piece.dim] = sum(view.shape[piece.dim] for view in piece.views)
    split = cast(Callable[..., tuple[Tensor, ...]], ids.view(shape).split)
    return split([view.shape[piece.dim] for view in piece.views], piece.dim)


def _affine(key: str, ids: Tensor) -> tuple[tuple[int, ...], int, tuple[int, ...]]:
    """Returns shape, first element and strides of a block of which only the indices are known."""
    start = int(ids.flatten()[0])
    strides = tuple(
        int(ids.select(dim, 1).flatten()[0]) - start if size > 1 else 1 for dim, size in enumerate(ids.shape)
    )
    places = torch.tensor(start)
    for size, stride in zip(ids.shape, strides, strict=True):
        places = places.unsqueeze(-1) + torch.arange(size) * stride
    if start < 0 or not torch.equal(places, ids):
        raise ValueError(f"{key} of the files must be a part of one weight of the experts, which it is not.")
    return tuple(ids.shape), start, strides


def _numbered(key: str, shape: tuple[int, ...], experts: int, tensors: Mapping[str, Tensor]) -> str:
    """Returns the key of the first expert with ``*`` in the place of its number; as it is for stacked experts."""
    whole = tensors.get(key)
    for zero in reversed(list(re.finditer(r"(?<=\.)0(?=\.)", key))):
        pattern = f"{key[: zero.start()]}*{key[zero.end() :]}"
        keys = [pattern.replace("*", str(expert)) for expert in range(experts)]
        if all(each in tensors and tuple(tensors[each].shape) == shape for each in keys):
            return pattern
    if whole is None or tuple(whole.shape) != (experts * shape[0], *shape[1:]):
        raise ValueError(f"{key} of the files must be of one expert, or of all in their order, got another.")
    return key
