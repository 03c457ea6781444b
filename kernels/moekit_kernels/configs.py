"""Tile sizes of every GEMM kernel, by target: a committed table, and how to override it.

The table is ``configs.json`` beside this file: target, then kind of kernel, then class of operands (``"16-bit"``,
``"32-bit"``, ``"tf32"`` where float32 is multiplied in TF32 and the table has tiles for it, or ``"odd"`` where rows are
not a multiple of 16 bytes, so that they are read number by number), then a list of
``[least rows per expert, configuration]``. The entry depends on device, dtype and shape alone, so every run takes the
same; nothing is timed on first use. To use another table, for one block of code::

    with override({"sm_90": {"forward": {"16-bit": [[0, [64, 128, 64, 8, 4, 3, 1]]]}}}): ...

or, from the file that ``python -m benchmarks tune`` writes, around a whole program::

    with override(load(path)): ...
"""

import functools
import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import torch

from moekit_kernels.overrides import Override
from moekit_kernels.precision import float32_precision
from moekit_kernels.targets import Target

KINDS = ("forward", "glu", "activation", "weight_grad", "few_rows")

Table = Mapping[str, Mapping[str, Mapping[str, Sequence[Sequence[Any]]]]]


class GemmConfig(NamedTuple):
    """Tile of one program.

    Attributes:
        block_m: Rows of the output tile.
        block_n: Columns of the output tile (for a gated activation: of the gate, and as many of the value).
        block_k: Depth of one step.
        group_m: Rows of tiles that are computed together, for the L2 cache.
        num_warps: Warps.
        num_stages: Steps that are loaded ahead.
        per_processor: Programs that a persistent kernel starts on each multiprocessor; 0 for one program for each tile.
    """

    block_m: int
    block_n: int
    block_k: int
    group_m: int
    num_warps: int
    num_stages: int
    per_processor: int


_override: Override[Table] = Override()


def gemm_config(
    kind: str, target: Target, dtype: torch.dtype, rows_per_expert: int, aligned: bool = True
) -> GemmConfig:
    """Returns the configuration of a GEMM kernel.

    Args:
        kind: One of :data:`KINDS`: ``"forward"`` for one product, ``"glu"`` for the pair of a gated
            activation, ``"activation"`` for one product whose epilogue computes or differentiates an activation,
            ``"weight_grad"``, and ``"few_rows"`` for decoding.
        target: Where it runs.
        dtype: Of the operands.
        rows_per_expert: ``N // E``, known on the host; the true counts are not.
        aligned: Whether rows of the operands are multiples of 16 bytes; see :func:`is_aligned`.

    Raises:
        ValueError: If the table has no such entry.
    """
    operands = operand_class(dtype, aligned)
    classes = ("tf32", "32-bit") if operands == "tf32" else (operands,)
    table = _override.value
    if table is not None:
        for one in classes:
            if config := _look_up(table, target.name, kind, one, rows_per_expert):
                return config
    for one in classes:
        if config := _look_up_committed(target.name, kind, one, rows_per_expert):
            return config
    raise ValueError(f"no configuration of kernel {kind!r} for {operands} operands on {target.name!r}.")


def operand_class(dtype: torch.dtype, aligned: bool = True) -> str:
    """Returns the class of operands: ``"odd"``, ``"16-bit"``, ``"tf32"`` or ``"32-bit"``.

    A kind of kernel without tiles for ``"tf32"`` takes those of ``"32-bit"``.
    """
    if not aligned:
        return "odd"
    if dtype.itemsize == 2:
        return "16-bit"
    return "tf32" if float32_precision(dtype) == "tf32" else "32-bit"


def _look_up(table: Table, target: str, kind: str, operands: str, rows_per_expert: int) -> GemmConfig | None:
    entries = table.get(target, {}).get(kind, {}).get(operands, ())
    fitting = [config for least, config in entries if rows_per_expert >= least]
    return GemmConfig(*fitting[-1]) if fitting else None


@functools.lru_cache(maxsize=4096)
def _look_up_committed(target: str, kind: str, operands: str, rows_per_expert: int) -> GemmConfig | None:
    return _look_up(committed(), target, kind, operands, rows_per_expert)


@functools.lru_cache(maxsize=1024)
def is_aligned(dtype: torch.dtype, *widths: int) -> bool:
    """Returns whether contiguous rows of every one of ``widths`` numbers are multiples of 16 bytes."""
    return all(width * dtype.itemsize % 16 == 0 for width in widths)


def override(table: Table) -> AbstractContextManager[None]:
    """Looks up ``table`` before the committed one, for a block of code; what it lacks comes from there.

    It holds for the whole process, because backward runs in threads of autograd: keep a backward pass inside.
    """
    return _override.set_to(table)


def load(path: str | Path) -> Table:
    """Reads a table from a json file."""
    return json.loads(Path(path).read_text())


@functools.cache
def tile_heights(target: Target) -> tuple[int, ...]:
    """Returns every ``block_m`` of the committed table by which kernels of ``target`` cut the rows of experts.

    A plan holds a schedule of tiles for each of them. Another table (:func:`override`) does not change it: heights
    that only that one has get a schedule when they are needed.
    """
    kinds = (committed()[target.name][kind] for kind in ("forward", "glu", "activation"))
    return tuple(sorted({config[0] for kind in kinds for entries in kind.values() for _, config in entries}))


@functools.cache
def committed() -> Table:
    """Returns the table of the package."""
    return load(Path(__file__).with_suffix(".json"))
