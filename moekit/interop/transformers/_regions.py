"""Where each value of a model with layers of moekit stands in the files that ``transformers`` would write of it."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from moekit.experts.ffn import FFNExperts
from moekit.interop.hub.chunks import Chunk, chunks_of
from moekit.interop.transformers._build import check_same_rule, empty_layer, understand
from moekit.interop.transformers._expert_parts import BlockInModel, in_files, of_experts, parts_of_experts
from moekit.interop.transformers._forms import FORMS
from moekit.interop.transformers._parts import modules_of
from moekit.interop.transformers._pieces import Piece
from moekit.layer import SparseMoE


class Regions(NamedTuple):
    """The files of a model, and what this rank has of them.

    Attributes:
        tensors: All tensors of the files on the meta device.
        views: The blocks of them that this rank holds, as views of its weights.
    """

    tensors: dict[str, Tensor]
    views: dict[Chunk, Tensor]


def regions_of(own: Mapping[str, Tensor], whole: nn.Module, like: Any) -> Regions:
    """Returns the files of a model.

    Args:
        own: State of the model, divided or not.
        whole: The model before it was divided, on the meta device.
        like: The model of ``transformers`` that it was made of.

    Raises:
        ValueError: If a block or its form in files is not understood, or the model has other tensors than ``like``.
    """
    blocks = [_block(whole, path, block) for path, block in modules_of(like).items() if _is_sparse(block)]
    if not blocks:
        raise ValueError(f"like must hold a sparse block of transformers, got a {type(like).__name__} without any.")
    expected = _state_of(like, like)
    source_of = dict[str, tuple[BlockInModel, Piece]]()
    for block in blocks:
        source_of |= {
            f"{block.path}.{name}": (block, piece) for piece in block.contents.pieces for name in piece.sources
        }
    of_whole = _state_of(whole, like)
    _check_names(of_whole, blocks, {name: each for name, each in expected.items() if name not in source_of})
    tied = tied_in_files(like)
    apart = [name for name, kept in tied.items() if of_whole[name] is not of_whole[kept]]
    if apart:
        raise ValueError(f"model must tie what like ties, got other tensors for {', '.join(apart)}.")

    def dtype_of(name: str) -> torch.dtype:
        block, piece = source_of.get(name, (None, None))
        return of_whole[name if block is None or piece is None else f"{block.layer}{piece.name}"].dtype

    blank = {
        name: torch.empty(each.shape, dtype=dtype_of(name), device="meta")
        for name, each in expected.items()
        if name not in tied
    }
    tensors = in_files(like, blank)
    views = dict[Chunk, Tensor]()
    key_of = {id(each): key for key, each in tensors.items()}
    for name, chunk, view in _renamed(own, blocks, tied, expected):
        if id(blank[name]) not in key_of:
            raise ValueError(f"like must be a model whose tensors beside experts are saved as they are, got {name}.")
        views[chunk._replace(name=key_of[id(blank[name])])] = view
    for block in blocks:
        parts = parts_of_experts(block, like, tensors)
        for piece in block.per_expert:
            views |= of_experts(own[f"{block.layer}{piece.name}"], piece, parts, tensors)
    return Regions(tensors, views)


def _is_sparse(block: nn.Module) -> bool:
    return type(block).__name__ in FORMS and type(block).__module__.startswith("transformers.models.")


def _block(whole: nn.Module, path: str, block: nn.Module) -> BlockInModel:
    place = whole.get_submodule(path)
    layers = {name: each for name, each in modules_of(place).items() if isinstance(each, SparseMoE)}
    if len(layers) != 1:
        raise ValueError(
            f"model must have one SparseMoE in the place of each sparse block, got {len(layers)} in {path!r}, "
            f"a {type(place).__name__}."
        )
    ((within, layer),) = layers.items()
    contents = understand(block)
    if contents.form.experts == "identity":
        raise ValueError(f"like must have no identity experts, got {path!r}: their files hold rows that no layer has.")
    check_same_rule(layer, empty_layer(contents, "auto", "meta"))
    stacked = {
        f"experts.{name}.{weight}" if name else f"experts.{weight}"
        for name, bank in modules_of(layer.experts).items()
        if isinstance(bank, FFNExperts)
        for weight, _ in bank.named_parameters(recurse=False)
    }
    per_expert = [piece for piece in contents.pieces if piece.name in stacked]
    return BlockInModel(path, f"{path}.{within}." if within else f"{path}.", contents, per_expert)


def tied_in_files(like: Any) -> dict[str, str]:
    """Returns the names that files leave out, as ``transformers`` ties them to others, with those."""
    declared = cast(dict[str, str], getattr(like, "all_tied_weights_keys", None) or {})
    names_of: dict[int, list[str]] = {}
    for name, each in _state_of(like, like).items():
        names_of.setdefault(id(each), []).append(name)
    tied: dict[str, str] = {}
    for names in names_of.values():
        kept = next((name for name in names if name not in declared), names[0])
        tied |= {name: kept for name in names if name != kept}
    return tied


def _state_of(model: nn.Module, like: Any) -> dict[str, Tensor]:
    ignored = cast(set[str], set(getattr(like, "_keys_to_ignore_on_save", None) or ()))
    state = cast(dict[str, Tensor], model.state_dict(keep_vars=True))
    return {name: each for name, each in state.items() if name not in ignored}


def _names_of(blocks: list[BlockInModel]) -> set[str]:
    return {f"{block.layer}{piece.name}" for block in blocks for piece in block.contents.pieces}


def _check_names(state: Mapping[str, Tensor], blocks: list[BlockInModel], others: Mapping[str, Tensor]) -> None:
    different = sorted(state.keys() ^ (others.keys() | _names_of(blocks)))
    different += [name for name, each in others.items() if name in state and state[name].shape != each.shape]
    if different:
        shown = ", ".join(different[:5])
        raise ValueError(
            "model must have the tensors of like, and those of layers in the places of its sparse blocks, got others: "
            f"{shown}{f' and {len(different) - 5} more' if len(different) > 5 else ''}."
        )


def _renamed(
    own: Mapping[str, Tensor], blocks: list[BlockInModel], tied: Mapping[str, str], expected: Mapping[str, Tensor]
) -> Iterator[tuple[str, Chunk, Tensor]]:
    """Returns what this rank holds of all tensors but those of experts: name in ``like``, block, view."""
    of_blocks = _names_of(blocks)
    for chunk, values in chunks_of({name: each for name, each in own.items() if name in expected}).items():
        if chunk.name not in of_blocks and chunk.name not in tied:
            yield chunk.name, chunk, values
    for block in blocks:
        for piece in block.contents.pieces:
            if piece in block.per_expert:
                continue
            for chunk, values in chunks_of({"": own[f"{block.layer}{piece.name}"]}).items():
                for name, placed, view in _cut(piece, chunk, values):
                    yield f"{block.path}.{name}", placed, view


def _cut(piece: Piece, chunk: Chunk, values: Tensor) -> Iterator[tuple[str, Chunk, Tensor]]:
    """Cuts the rows of a weight that consists of several tensors, one after another along the first dimension."""
    if piece.dim != 0:
        raise ValueError(f"block's {', '.join(piece.sources)} must be joined by rows.")
    end = 0
    first, last = chunk.offsets[0], chunk.offsets[0] + chunk.sizes[0]
    for (name, source), view in zip(piece.sources.items(), piece.views, strict=True):
        start, end = end, end + view.shape[0]
        low, high = max(first, start), min(last, end)
        if low >= high:
            continue
        rows = values[low - first : high - first]
        lead = source.ndim - view.ndim  # a bias (1, E) is a vector in the layer
        offsets = (*(0,) * lead, low - start, *chunk.offsets[1:])
        yield name, Chunk("", offsets, (*(1,) * lead, *rows.shape)), rows.view(*(1,) * lead, *rows.shape)
