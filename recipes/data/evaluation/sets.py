"""Opens an evaluation set by its name."""

import inspect
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from recipes.data.arguments import argument
from recipes.data.evaluation.any_table import csv_set
from recipes.data.evaluation.busi import busi_set
from recipes.data.evaluation.chexpert5x200 import chexpert_5x200
from recipes.data.evaluation.knee import knee_set
from recipes.data.evaluation.medimeta import medimeta_set
from recipes.data.evaluation.medmnist import MODALITIES, medmnist_set
from recipes.data.evaluation.rsna import rsna_pneumonia
from recipes.data.evaluation.thyroid import thyroid_set
from recipes.data.evaluation.types import EvaluationSet

Opener = Callable[..., EvaluationSet]


def _organs(root: str | Path, *, plane: str, **options: Any) -> EvaluationSet:
    return medimeta_set(root, set_id=f"organs_{plane}", modality="ct", prompts=f"organs_{plane}", **options)


def _flag(root: str | Path | None, *, flag: str, **options: Any) -> EvaluationSet:
    if root is not None and str(root).endswith(".npz"):
        return medmnist_set(Path(root), **options)
    return medmnist_set(flag, root=root, **options)


SETS: dict[str, Opener] = {
    "chexpert5x200": chexpert_5x200,
    "rsna": rsna_pneumonia,
    "thyroid": thyroid_set,
    "busi": busi_set,
    "acl": partial(knee_set, finding="acl"),
    "meniscus": partial(knee_set, finding="meniscus"),
    **{f"medimeta-{plane}": partial(_organs, plane=plane) for plane in ("axial", "coronal", "sagittal")},
    **{flag: partial(_flag, flag=flag) for flag in MODALITIES},
    "csv": csv_set,
}
"""The sets by name; each takes a folder or file and options of its own."""


def set_options(name: str) -> tuple[str, ...]:
    """Names the options that a set takes besides its root.

    Raises:
        ValueError: If there is no such set.
    """
    _check_name(name)
    if name.startswith("medimeta-"):
        return ("label_task", "use_hdf5", "on_bad_image")
    reader = medmnist_set if name in MODALITIES else SETS[name]
    fixed = {"root", "csv", "data", "finding"}
    return tuple(option for option in inspect.signature(reader).parameters if option not in fixed)


def open_evaluation_set(name: str, root: str | Path | None = None, /, **options: Any) -> EvaluationSet:
    """Opens one of the sets that a pretrained model is evaluated on.

    Args:
        name: One of `SETS`.
        root: The folder or file that it lies in. A MedMNIST flag takes its folder or an ``.npz`` file, or ``None``
            for medmnist's own folder.
        **options: Of the set's reader, see `set_options`; one may be called ``name`` too.

    Returns:
        The set, with a test split and those others that it has.

    Raises:
        ValueError: If there is no such set or option, the root is missing, or the files are not as they should be.
    """
    _check_name(name)
    unknown = [option for option in options if option not in set_options(name)]
    if unknown:
        raise ValueError(f"{name} takes the options {', '.join(set_options(name))}, got {', '.join(unknown)}")
    if name not in MODALITIES:
        if root is None:
            raise ValueError(f"{argument('root')}: {name} needs the folder or file that it lies in")
        if not Path(root).exists():
            raise ValueError(f"{argument('root')}: {str(root)!r} does not exist")
    return SETS[name](root, **options)


def _check_name(name: str) -> None:
    if name not in SETS:
        raise ValueError(f"{argument('name')} must be one of {', '.join(SETS)}, got {name!r}")
