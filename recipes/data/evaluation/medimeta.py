"""MedIMeta: sets of 224-pixel images in one layout, among them organs in CT in three planes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recipes.data.arguments import argument
from recipes.data.evaluation.assemble import assemble, one_hot
from recipes.data.evaluation.labelled_images import labelled_images, read_hdf5
from recipes.data.evaluation.types import EvaluationSet
from recipes.data.image_files import OnBadImage, read_file
from recipes.data.studies import SPLITS, Task
from recipes.data.tables.csv_file import read_header, read_table
from recipes.data.tables.labels import is_blank
from recipes.shared.extras import require

_TASKS: dict[str, Task] = {
    "MULTICLASS_CLASSIFICATION": "multi-class",
    "BINARY_CLASSIFICATION": "binary-class",
    "MULTILABEL_CLASSIFICATION": "multi-label",
    "ORDINAL_REGRESSION": "ordinal-regression",
}
_GROUP_COLUMNS = ("patient_id", "original_filepath")


def medimeta_set(
    root: str | Path,
    *,
    set_id: str | None = None,
    label_task: str | None = None,
    modality: str | None = None,
    prompts: str | None = None,
    use_hdf5: bool | None = None,
    on_bad_image: OnBadImage = "error",
) -> EvaluationSet:
    """Reads one set of MedIMeta.

    Layout: ``info.yaml`` (id, tasks with their labels), ``images/000000.tiff`` and the same in
    ``images.hdf5['images']``, ``task_labels/<task>.npy``, ``splits/{train,val,test}.txt`` (lines such as
    ``images/000000.tiff``), ``annotations.csv``. The group of an image is its ``patient_id`` or, failing that, its
    ``original_filepath`` in ``annotations.csv``: the CT volume, for the organs.

    Args:
        root: The set's folder, or the one that holds it under the name ``set_id``.
        set_id: What ``info.yaml`` must say, such as ``"organs_axial"``; ``None`` takes any.
        label_task: One of the set's tasks, by default its first.
        modality: Kind of its images.
        prompts: Name of the prompt file.
        use_hdf5: Read the HDF5 file; ``None`` does so only where there is no folder ``images``.
        on_bad_image: What to do about images that cannot be read.

    Raises:
        ValueError: If a file is missing or damaged, a split lists an image that is not there, or a label is out of
            range.
        ImportError: If pyyaml is missing, or h5py for an HDF5 file.

    Reference:
        Woerner et al., A comprehensive and easy-to-use multi-domain multi-task medical imaging meta-dataset,
        Scientific Data 2025.
    """
    root = Path(root)
    if set_id is not None and not (root / "info.yaml").is_file() and (root / set_id).is_dir():
        root = root / set_id
    info = _read_info(root / "info.yaml", set_id)
    name, task, classes = _find_task(info, label_task, root / "info.yaml")
    labels = _read_labels(root / "task_labels" / f"{name}.npy", task, len(classes))
    hdf5 = use_hdf5 if use_hdf5 is not None else not (root / "images").is_dir()
    if hdf5:
        _check_hdf5(root / "images.hdf5", len(labels))
    listed = [
        (split, index)
        for split in SPLITS
        for index in _read_split(root / "splits" / f"{split}.txt", split, info, len(labels))
    ]
    groups, notes = _groups(root, len(labels))
    rows = [index for _, index in listed]
    images = labelled_images(
        [f"{index:06d}" for index in rows],
        [root / "images.hdf5" if hdf5 else root / "images" / f"{index:06d}.tiff" for index in rows],
        labels[rows],
        [groups[index] for index in rows],
        modality=modality,
        details=rows if hdf5 else None,
        read=read_hdf5 if hdf5 else read_file,
    )
    return assemble(
        str(info["id"]),
        images,
        [split for split, _ in listed],
        task=task,
        classes=classes,
        where=str(root),
        prompts=prompts,
        on_bad_image=on_bad_image,
        notes=notes,
    )


def _read_info(path: Path, set_id: str | None) -> Mapping[str, Any]:
    yaml = require("yaml", "reading MedIMeta")
    if not path.is_file():
        raise ValueError(f"{str(path)!r} does not exist: expected the folder of a MedIMeta set")
    try:
        info = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read {str(path)!r}: {error}") from error
    if not isinstance(info, dict) or not info.get("tasks") or "id" not in info:
        raise ValueError(f"{path}: lacks the id or the tasks")
    if set_id is not None and info["id"] != set_id:
        raise ValueError(f"{path}: is of the set {info['id']!r}, expected {set_id!r}")
    return info


def _find_task(info: Mapping[str, Any], label_task: str | None, path: Path) -> tuple[str, Task, tuple[str, ...]]:
    """Finds a task's name, kind and classes."""
    tasks = {str(task.get("task_name")): task for task in info["tasks"]}
    name = next(iter(tasks)) if label_task is None else label_task
    if name not in tasks:
        raise ValueError(f"{argument('label_task')} must be one of {list(tasks)} ({path}), got {name!r}")
    target, labels = tasks[name].get("task_target"), tasks[name].get("labels")
    if target not in _TASKS:
        raise ValueError(f"{path}: task {name!r}: task_target must be one of {', '.join(_TASKS)}, got {target!r}")
    if not isinstance(labels, dict) or sorted(labels) != list(range(len(labels))) or not labels:
        raise ValueError(f"{path}: task {name!r}: labels must name the classes 0, 1, ..., got {labels!r}")
    return name, _TASKS[target], tuple(str(labels[index]) for index in range(len(labels)))


def _read_labels(path: Path, task: Task, classes: int) -> NDArray[np.float32]:
    """Reads the labels of all images: ``(N, C)``."""
    if not path.is_file():
        raise ValueError(f"label file {str(path)!r} does not exist")
    try:
        labels = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"cannot read the labels {str(path)!r}: {error}") from error
    shape, highest = (f"(N, {classes})", 1) if task == "multi-label" else ("(N,)", classes - 1)
    matches = labels.ndim == 2 and labels.shape[1] == classes if task == "multi-label" else labels.ndim == 1
    if not matches or len(labels) == 0 or labels.dtype.kind not in "iubf":
        raise ValueError(f"{path}: must hold numbers of shape {shape}, got {labels.dtype} of shape {labels.shape}")
    wrong = ~np.isin(labels, np.arange(highest + 1))
    if wrong.any():
        row = int(np.argwhere(wrong)[0, 0])
        raise ValueError(f"{path}: row {row} holds {labels[row].tolist()}, expected 0 to {highest}")
    return labels.astype(np.float32) if task == "multi-label" else one_hot(labels.astype(int), classes)


def _read_split(path: Path, split: str, info: Mapping[str, Any], count: int) -> list[int]:
    """Reads the numbers of a split's images; no file is right where ``info.yaml`` counts none."""
    if not path.is_file():
        if (info.get("splits_num_samples") or {}).get(split) == 0:
            return []
        raise ValueError(f"split file {str(path)!r} does not exist")
    indices = []
    for row, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        if not line.strip():
            continue
        stem = Path(line.strip()).stem
        if not stem.isdecimal() or int(stem) >= count:
            raise ValueError(
                f"{path}: line {row} must name an image such as images/000000.tiff, below {count}, got {line.strip()!r}"
            )
        indices.append(int(stem))
    return indices


def _groups(root: Path, count: int) -> tuple[list[str], list[str]]:
    """Reads the group of each image, and a note if there is none."""
    path = root / "annotations.csv"
    own = [f"{index:06d}" for index in range(count)]
    if not path.is_file():
        return own, ["no annotations.csv: every image is its own group, so a patient may lie in two splits"]
    column = _group_column(path)
    table = read_table(path, ["filepath", column])
    groups = dict(zip((Path(file).stem for file in table["filepath"]), table[column], strict=True))
    missing = [index for index in own if is_blank(groups.get(index, ""))]
    if missing:
        raise ValueError(f"{path}: column {column!r} has no value for image {missing[0]} and {len(missing) - 1} others")
    return [groups[index].strip() for index in own], []


def _group_column(path: Path) -> str:
    header = read_header(path)
    return next((column for column in _GROUP_COLUMNS if column in header), _GROUP_COLUMNS[-1])


def _check_hdf5(path: Path, count: int) -> None:
    """Refuses an HDF5 file without one image per label."""
    h5py = require("h5py", "reading an HDF5 file")
    if not path.is_file():
        raise ValueError(f"there is no folder of images, and {str(path)!r} does not exist")
    try:
        with h5py.File(path, "r") as file:
            shape = file["images"].shape
    except (OSError, KeyError, AttributeError) as error:
        raise ValueError(f"cannot read the array 'images' of {str(path)!r}: {error}") from error
    if len(shape) not in (3, 4) or shape[0] != count:
        raise ValueError(f"{path}: 'images' has shape {shape}, expected ({count}, H, W) or ({count}, H, W, 3)")
