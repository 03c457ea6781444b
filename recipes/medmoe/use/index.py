"""An index: embeddings of images in a file, npz or parquet, and the search for the nearest."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recipes.shared.extras import require

SUFFIXES = (".npz", ".parquet")
_ABOUT = "moekit"
_KEYS = ("weights", "checkpoint", "run")


@dataclass(frozen=True)
class Index:
    """Embeddings of ``N`` images.

    Attributes:
        images: Path of each image.
        embeddings: ``float32`` of shape ``(N, D)``, rows of length 1.
        about: What made them: ``run`` (its name), ``checkpoint`` and ``weights`` (a checksum).
        texts: Text of each image, empty where there is none; ``None`` without any.
        text_embeddings: ``(N, D)``, of the texts; ``None`` without any.
    """

    images: tuple[str, ...]
    embeddings: NDArray[np.float32]
    about: Mapping[str, str]
    texts: tuple[str, ...] | None = None
    text_embeddings: NDArray[np.float32] | None = None


def check_suffix(path: Path, option: str) -> None:
    """Refuses a file that is neither npz nor parquet, or parquet without pyarrow.

    Raises:
        ValueError: Naming the file and the option.
        ImportError: If pyarrow is missing.
    """
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path} must end in {' or '.join(SUFFIXES)} ({option}).")
    if path.suffix == ".parquet":
        require("pyarrow.parquet", "an index in parquet", extra="search")


def write_index(path: Path, index: Index) -> None:
    """Writes an index; the ending of the path names the format.

    An npz file holds the arrays ``images``, ``embeddings``, ``about`` (json) and, with texts, ``texts`` and
    ``text_embeddings``; a parquet file one row per image with columns of these names, ``about`` in its metadata.
    """
    about = json.dumps(dict(index.about), sort_keys=True)
    if path.suffix == ".npz":
        arrays: dict[str, Any] = {"images": np.array(index.images), "embeddings": index.embeddings}
        if index.texts is not None and index.text_embeddings is not None:
            arrays |= {"texts": np.array(index.texts), "text_embeddings": index.text_embeddings}
        with path.open("wb") as file:
            np.savez_compressed(file, about=np.array(about), **arrays)
        return
    pyarrow = require("pyarrow", "an index in parquet", extra="search")
    columns: dict[str, Any] = {"images": list(index.images), "embeddings": _vectors(pyarrow, index.embeddings)}
    if index.texts is not None and index.text_embeddings is not None:
        columns |= {"texts": list(index.texts), "text_embeddings": _vectors(pyarrow, index.text_embeddings)}
    table = pyarrow.table(columns).replace_schema_metadata({_ABOUT: about})
    require("pyarrow.parquet", "an index in parquet", extra="search").write_table(table, path)


def read_index(path: Path) -> Index:
    """Reads what :func:`write_index` wrote.

    Raises:
        ValueError: If the file is missing, damaged, or no index.
        ImportError: If it is parquet and pyarrow is missing.
    """
    check_suffix(path, "--index")
    if not path.is_file():
        raise ValueError(f"{path} does not exist: make an index with embed --out {path} (--index).")
    try:
        values = _read_npz(path) if path.suffix == ".npz" else _read_parquet(path)
        about = json.loads(str(values.pop("about")))
        index = Index(
            tuple(map(str, values["images"])),
            np.asarray(values["embeddings"], np.float32),
            about,
            tuple(map(str, values["texts"])) if "texts" in values else None,
            np.asarray(values["text_embeddings"], np.float32) if "texts" in values else None,
        )
    except ImportError:
        raise
    except Exception as error:  # whatever numpy, pyarrow and json raise over damaged bytes
        raise ValueError(
            f"{path} is no index that can be read ({error}): make it anew with embed (--index)."
        ) from error
    shape, missing = index.embeddings.shape, [key for key in _KEYS if key not in about]
    if len(shape) != 2 or shape[0] != len(index.images) or missing or not np.isfinite(index.embeddings).all():
        raise ValueError(f"{path} is no index: make it anew with embed (--index).")
    return index


def nearest(index: Index, queries: NDArray[np.floating], top: int, *, faiss: bool = False) -> tuple[Any, Any]:
    """Finds the images of an index whose embeddings have the highest cosine with queries.

    Args:
        index: The index.
        queries: ``(Q, D)``, of any length.
        top: How many images each; all where the index has fewer.
        faiss: Whether faiss searches (exactly, too), for indices of millions of images.

    Returns:
        Cosines and rows of the index, each ``(Q, top)``, best first; of equal ones the first row.

    Raises:
        ValueError: If the widths differ.
        ImportError: If faiss is asked for and not installed.
    """
    if queries.shape[1] != index.embeddings.shape[1]:
        raise ValueError(
            f"queries have width {queries.shape[1]}, the index {index.embeddings.shape[1]}: of other models."
        )
    unit = np.asarray(queries / np.linalg.norm(queries, axis=1, keepdims=True), np.float32)
    top = min(top, len(index.images))
    if faiss:
        library = require("faiss", "searching with --faiss", extra="search")
        flat = library.IndexFlatIP(unit.shape[1])
        flat.add(np.ascontiguousarray(index.embeddings))
        return flat.search(np.ascontiguousarray(unit), top)
    cosines = unit @ index.embeddings.T
    rows = np.argsort(-cosines, axis=1, kind="stable")[:, :top]
    return np.take_along_axis(cosines, rows, axis=1), rows


def _vectors(pyarrow: Any, values: NDArray[np.float32]) -> Any:
    flat = pyarrow.array(np.ascontiguousarray(values, np.float32).ravel())
    return pyarrow.FixedSizeListArray.from_arrays(flat, values.shape[1])


def _read_npz(path: Path) -> dict[str, Any]:
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def _read_parquet(path: Path) -> dict[str, Any]:
    table = require("pyarrow.parquet", "an index in parquet", extra="search").read_table(path)
    values: dict[str, Any] = {"about": (table.schema.metadata or {})[_ABOUT.encode()].decode()}
    for name in table.column_names:
        column = table.column(name)
        vectors = name in ("embeddings", "text_embeddings")
        values[name] = np.array(column.to_pylist(), np.float32) if vectors else column.to_pylist()
    return values


def texts_or_none(texts: Sequence[str | None]) -> tuple[str, ...] | None:
    """Returns texts with empty ones where there is none; ``None`` if there is no text at all."""
    return tuple(text or "" for text in texts) if any(texts) else None
