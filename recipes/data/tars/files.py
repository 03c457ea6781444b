"""Which tars a pattern names."""

import glob
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

from recipes.data.arguments import argument
from recipes.data.studies import SPLITS
from recipes.data.tables.columns import modality_name
from recipes.shared.extras import require

Paths: TypeAlias = str | Path | Sequence[str | Path]
Pattern: TypeAlias = Paths | Mapping[str, Paths]
"""A path, a glob, a brace pattern, several of them, or any of these by modality."""

_COMPRESSED = (".gz", ".tgz", ".bz2", ".xz", ".zst")


class Shard(NamedTuple):
    """A tar and the modality of its samples that name none."""

    path: Path
    modality: str | None


def shard_arguments() -> str:
    """Names the arguments that hold the patterns of the three splits."""
    return ", ".join(argument(split) for split in SPLITS)


def find_shards(pattern: Pattern, modality: str | None) -> tuple[Shard, ...]:
    """Lists the tars of a pattern, in its order; those of a glob are sorted.

    Args:
        pattern: ``train.tar``, ``train-*.tar``, ``train-{000..127}.tar`` (or braces and glob together), a sequence
            of such, or a mapping of modalities to such.
        modality: Of samples that name none, where ``pattern`` is no mapping.

    Raises:
        ValueError: If the pattern is empty or matches nothing, a file is missing, compressed or listed twice, or
            ``pattern`` is a mapping and ``modality`` is set too.
        ImportError: If braceexpand is not installed.
    """
    if isinstance(pattern, Mapping):
        if modality is not None:
            raise ValueError(f"modality: the pattern is a mapping of modalities already, so leave out {modality!r}")
        shards = [Shard(path, modality_name(name)) for name, paths in pattern.items() for path in _paths(paths)]
    else:
        shards = [Shard(path, modality_name(modality or "")) for path in _paths(pattern)]
    if not shards:
        raise ValueError(f"pattern must name at least one tar, got {pattern!r} ({shard_arguments()})")
    absent = [str(shard.path) for shard in shards if not shard.path.is_file()]
    if absent:
        shown = ", ".join(absent[:5]) + (", ..." if len(absent) > 5 else "")
        raise ValueError(f"pattern: {len(absent)} of {len(shards)} tars do not exist: {shown} ({shard_arguments()})")
    first: dict[Path, Path] = {}
    for path, _ in shards:
        if path.suffix.lower() in _COMPRESSED:
            raise ValueError(
                f"pattern: {str(path)!r} is compressed, expected a plain tar: images are compressed already"
            )
        if first.setdefault(path.resolve(), path) is not path:
            raise ValueError(f"pattern: the tar {str(path)!r} is listed twice ({shard_arguments()})")
    return tuple(shards)


def _paths(pattern: Paths) -> list[Path]:
    if isinstance(pattern, str | Path):
        return _expanded(os.fspath(pattern))
    return [path for part in pattern for path in _expanded(os.fspath(part))]


def _expanded(pattern: str) -> list[Path]:
    """Expands braces, then globs. A file of exactly this name is itself, whatever its brackets."""
    if not pattern.strip():
        raise ValueError(f"pattern must name at least one tar, got a blank ({shard_arguments()})")
    if os.path.isfile(pattern):
        return [Path(pattern)]
    braces = require("braceexpand", "a pattern with braces")
    try:
        parts = list(braces.braceexpand(pattern))
    except braces.UnbalancedBracesError as error:
        raise ValueError(f"pattern {pattern!r}: {error} ({shard_arguments()})") from None
    paths: list[Path] = []
    for part in parts:
        if not glob.has_magic(part):
            paths.append(Path(part))
            continue
        matches = sorted(glob.glob(part))
        if not matches:
            raise ValueError(f"pattern {part!r} matches no file ({shard_arguments()})")
        paths.extend(map(Path, matches))
    return paths
