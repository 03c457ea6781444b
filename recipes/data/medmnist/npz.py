"""Reads MedMNIST's files, official or made in their layout."""

import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recipes.data.medmnist.files import find_file
from recipes.data.studies import SPLITS, Study, StudySource, Task
from recipes.shared.extras import require

_PURPOSE = "reading MedMNIST"
_OWN_GROUPS = "MedMNIST names no patients: every image is its own group"


@dataclass(frozen=True, eq=False)
class ArraySplit:
    """One split held in memory.

    Attributes:
        name: Of the split; begins the ids.
        images: ``uint8`` of shape ``(N, H, W)`` or ``(N, H, W, 3)``, or of volumes ``(N, D, H, W)``.
        labels: ``float32`` of shape ``(N, C)``.
        groups: The ids: every image is its own group.
        texts: ``None`` for every study.
    """

    name: str
    images: NDArray[np.uint8]
    labels: NDArray[np.float32]
    groups: tuple[str, ...]
    texts: tuple[None, ...]

    @property
    def ids(self) -> tuple[str, ...]:
        """Name of the split and place in it."""
        return self.groups

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, index: int) -> Study:
        """Copies one study out of the arrays."""
        id = self.groups[index]
        image = self.images[index].copy()
        if image.ndim == 3 and image.shape[-1] != 3:
            image = image[..., None]
        return Study(id, id, image, None, self.labels[index].copy())


def medmnist_source(
    data: str | Path, *, size: int = 28, root: str | Path | None = None, download: bool = False
) -> StudySource:
    """Reads an ``.npz`` of MedMNIST's layout: ``{train,val,test}_{images,labels}``.

    A flag that the ``medmnist`` package knows, in ``data`` or at the beginning of the file's name
    (``pathmnist_718.npz`` is of ``pathmnist``), gives the task and the names of the classes. Any other file
    is multi-label if its labels have several columns, binary-class if they are 0 and 1, else multi-class, and
    its classes are named ``"0"``, ``"1"``, ...

    Labels become ``float32`` of shape ``(N, C)``. Multi-label ones are kept; every other task is one-hot,
    binary-class over its *two* classes and ordinal regression over its grades, so that one-vs-rest AUROC
    means the same for all.

    Args:
        data: A flag such as ``"breastmnist"``, or the path of a file that ends in ``.npz``.
        size: For a flag, side of the images in pixels: 28 is ``{flag}.npz``, 64 is ``{flag}_64.npz``. A path
            has the size it has.
        root: For a flag, folder of the files; by default medmnist's own, ``~/.medmnist``.
        download: For a flag, whether to download a file that is not there, with the ``medmnist`` package.

    Returns:
        The source, its arrays held in memory.

    Raises:
        ValueError: If the flag is unknown, or the file missing, damaged or not of the layout; the message
            names the file and the key.
        RuntimeError: If the download fails; the message says what to do instead.
        ImportError: If medmnist is not installed.

    Reference:
        Yang et al., MedMNIST v2, Scientific Data 2023.
    """
    info = require("medmnist", _PURPOSE).INFO
    path = find_file(data, size=size, root=root, download=download, info=info)
    arrays = _read_arrays(path)
    for split in SPLITS:
        _check_images(arrays, split, path)
    _check_sizes_agree(arrays, path)
    flag = path.stem if path.stem in info else path.stem.partition("_")[0]
    known = info.get(flag)
    task, classes = _target(arrays, known, path)
    notes = [_OWN_GROUPS]
    if known is not None:
        notes += _count_notes(arrays, flag, known["n_samples"])
    parts = {split: _part(arrays, split, task, len(classes), path) for split in SPLITS}
    return StudySource(path.stem, task, classes, **parts, notes=tuple(notes))


def _read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Reads the six arrays."""
    # The file is opened here because numpy leaves one that it opened itself open when it is no archive.
    with path.open("rb") as file:
        try:
            archive = np.load(file, allow_pickle=False)
        except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path}: is no readable .npz file ({error}): get it again") from error
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise ValueError(f"{path}: holds a single array, expected an .npz archive of six")
        keys = [f"{split}_{kind}" for split in SPLITS for kind in ("images", "labels")]
        missing = [key for key in keys if key not in archive.files]
        if missing:
            raise ValueError(
                f"{path}: lacks {', '.join(missing)}; it has {sorted(archive.files)}. All six of "
                "{train,val,test}_{images,labels} are needed: get the whole file, or split it anew."
            )
        return {key: _read_array(archive, key, path) for key in keys}


def _read_array(archive: Mapping[str, NDArray[Any]], key: str, path: Path) -> NDArray[Any]:
    try:
        return archive[key]
    except (ValueError, OSError, EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path}: {key} cannot be read ({error}): get the file again") from error


def _check_images(arrays: Mapping[str, NDArray[Any]], split: str, path: Path) -> None:
    """Checks dtype and shape of one split's images and labels, and that they are as many."""
    images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
    where = f"{path}: {split}_images"
    if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[-1] == 1):
        raise ValueError(
            f"{where} must have shape (N, H, W) or (N, H, W, 3), or (N, D, H, W) for volumes, got {images.shape}"
        )
    if images.dtype != np.uint8:
        raise ValueError(f"{where} must be uint8, got {images.dtype}")
    if images.size == 0:
        raise ValueError(f"{where} is empty (shape {images.shape}), expected at least one image")
    where = f"{path}: {split}_labels"
    if labels.ndim != 2 or labels.shape[1] == 0:
        raise ValueError(f"{where} must have shape (N, 1), or (N, C) for several labels, got {labels.shape}")
    if labels.dtype.kind not in "iub":
        raise ValueError(f"{where} must be integers, got {labels.dtype}")
    if len(labels) != len(images):
        raise ValueError(f"{where} has {len(labels)} rows for {len(images)} images")


def _check_sizes_agree(arrays: Mapping[str, NDArray[Any]], path: Path) -> None:
    for kind in ("images", "labels"):
        shapes = {f"{split}_{kind}": arrays[f"{split}_{kind}"].shape[1:] for split in SPLITS}
        if len(set(shapes.values())) > 1:
            raise ValueError(f"{path}: the three splits must agree in shape after N, got {shapes}")


def _target(
    arrays: Mapping[str, NDArray[Any]], known: Mapping[str, Any] | None, path: Path
) -> tuple[Task, tuple[str, ...]]:
    """Finds the task and the classes: from what medmnist knows of the flag, or from the labels."""
    if known is not None:
        # ChestMNIST's task reads "multi-label, binary-class": each of its labels is 0 or 1.
        task = known["task"].partition(",")[0]
        return task, tuple(known["label"][str(i)] for i in range(len(known["label"])))
    columns = arrays["train_labels"].shape[1]
    if columns > 1:
        return "multi-label", tuple(str(i) for i in range(columns))
    values = np.unique(np.concatenate([arrays[f"{split}_labels"].ravel() for split in SPLITS]))
    if len(values) < 2 or not np.array_equal(values, np.arange(len(values))):
        raise ValueError(
            f"{path}: labels must be 0, 1, ... up to the number of classes without a gap, at least two of "
            f"them, got the values {values[:10].tolist()}{', ...' if len(values) > 10 else ''}"
        )
    return ("binary-class" if len(values) == 2 else "multi-class"), tuple(str(value) for value in values)


def _part(arrays: Mapping[str, NDArray[Any]], split: str, task: Task, classes: int, path: Path) -> ArraySplit:
    """Makes one split, its labels checked against the classes and spread over their columns."""
    labels, where = arrays[f"{split}_labels"], f"{path}: {split}_labels"
    columns, highest = (classes, 1) if task == "multi-label" else (1, classes - 1)
    if labels.shape[1] != columns:
        raise ValueError(f"{where} must have {columns} columns for {classes} classes ({task}), got {labels.shape[1]}")
    outside = (labels < 0) | (labels > highest)
    if outside.any():
        row = int(np.argmax(outside.any(axis=1)))
        raise ValueError(
            f"{where}: row {row} holds {labels[row][outside[row]].tolist()}, expected 0 to {highest} "
            f"({task}, {classes} classes)"
        )
    if task == "multi-label":
        spread = labels.astype(np.float32)
    else:
        spread = np.eye(classes, dtype=np.float32)[labels[:, 0].astype(np.int64)]
    groups = tuple(f"{split}-{row:05d}" for row in range(len(labels)))
    return ArraySplit(split, arrays[f"{split}_images"], spread, groups, (None,) * len(labels))


def _count_notes(arrays: Mapping[str, NDArray[Any]], flag: str, official: Mapping[str, int]) -> list[str]:
    """Says where a file holds another number of images than the set of its name."""
    counts = {split: len(arrays[f"{split}_labels"]) for split in SPLITS}
    differing = [f"{split} {n} of {official[split]}" for split, n in counts.items() if n != official[split]]
    return [f"differs from the official {flag}: {', '.join(differing)} images"] if differing else []
