"""BUSI: breast ultrasound, benign, malignant or normal, with the masks of the tumours beside the images."""

import re
from pathlib import Path
from typing import NamedTuple

from recipes.data.evaluation.assemble import FRACTIONS, Splits, assemble, one_hot, unofficial
from recipes.data.evaluation.benchmark import Benchmark, TableOptions, benchmark_set, has_tables
from recipes.data.evaluation.columns import refuse_options
from recipes.data.evaluation.labelled_images import labelled_images, read_with_masks
from recipes.data.evaluation.types import EvaluationSet
from recipes.data.image_files import OnBadImage

CLASSES = ("benign", "malignant", "normal")
_FOLDER = "Dataset_BUSI_with_GT"
_PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".gif")
_MERGED = "normal breasts count as benign, as in the benchmark's tables"
_NO_PATIENTS = "BUSI names no patients: every image is its own group, so a patient may lie in two splits"
_BENCHMARK = Benchmark(
    "busi",
    ("breast_", ""),
    ("label", "breast_label"),
    {"benign": 0, "malignant": 1},
    ("benign", "malignant"),
    "ultrasound",
    str,
    (_MERGED, _NO_PATIENTS),
)


class _Picture(NamedTuple):
    """An image and its masks."""

    name: str
    path: Path
    masks: tuple[str, ...]


def busi_set(
    root: str | Path,
    *,
    merge_normal: bool = False,
    fold: int = 1,
    image_column: str | None = None,
    label_column: str | None = None,
    image_root: str | Path | None = None,
    splits: Splits = "draw",
    seed: int = 0,
    fractions: tuple[float, float, float] = FRACTIONS,
    on_bad_image: OnBadImage = "error",
    force_dicom: bool = False,
) -> EvaluationSet:
    """Reads breast ultrasound in one of two layouts.

    - BUSI's own: the folders ``benign``, ``malignant`` and ``normal`` with ``benign (1).png`` and the masks
      ``benign (1)_mask.png``, ``benign (1)_mask_1.png``, ... A file is an image only if its whole name is the
      class and a number in brackets; masks give the study's boxes and are never images.
    - The benchmark's: ``breast_{train,val,test}_fold1.csv`` of path and malignant or benign, in which normal
      breasts are benign; or one such table, which is then all test.

    Args:
        root: ``Dataset_BUSI_with_GT``, the folder that holds it, or for the benchmark its folder or a table.
        merge_normal: Count normal as benign: two classes instead of three. The benchmark has two as it is.
        fold: Of the benchmark.
        image_column: Of the benchmark's tables, by default one of the usual names.
        label_column: Likewise.
        image_root: Where the paths of the tables begin, by default ``root``.
        splits: For BUSI's own layout, which has none: draw by image, or take everything for test.
        seed: Of the drawn splits.
        fractions: Of the drawn splits.
        on_bad_image: What to do about files that cannot be read.
        force_dicom: Whether the benchmark's DICOM files without preamble and file meta group are read.

    Raises:
        ValueError: If a folder is missing or empty, a picture is neither an image of its folder's class nor a
            mask, a mask has no image, or a table or option is wrong.

    Reference:
        Al-Dhabyani et al., Dataset of breast ultrasound images, Data in Brief 2020.
    """
    root = Path(root)
    tables = TableOptions(fold, image_column, label_column, image_root, force_dicom)
    if has_tables(root, _BENCHMARK, fold):
        refuse_options(
            f"{root} is of the benchmark's layout",
            merge_normal=(merge_normal, False),
            splits=(splits, "draw"),
            seed=(seed, 0),
            fractions=(tuple(fractions), FRACTIONS),
        )
        return benchmark_set(root, _BENCHMARK, tables, on_bad_image=on_bad_image)
    if (root / _FOLDER).is_dir():
        root = root / _FOLDER
    tables.refuse(f"{root} is BUSI's own folder")
    pictures = {name: _pictures(root / name, name) for name in CLASSES}
    classes = CLASSES[:2] if merge_normal else CLASSES
    labelled = [(name, picture) for name, listed in pictures.items() for picture in listed]
    ids = [picture.name for _, picture in labelled]
    images = labelled_images(
        ids,
        [picture.path for _, picture in labelled],
        one_hot([classes.index(name) if name in classes else 0 for name, _ in labelled], len(classes)),
        ids,
        modality="ultrasound",
        details=[(f"{name} tumour", picture.masks) for name, picture in labelled],
        read=read_with_masks,
    )
    return assemble(
        "busi",
        images,
        unofficial(splits, len(images), seed, fractions),
        task="binary-class" if merge_normal else "multi-class",
        classes=classes,
        where=str(root),
        prompts="busi",
        on_bad_image=on_bad_image,
        notes=[*([_MERGED] if merge_normal else []), _NO_PATIENTS],
    )


def _pictures(folder: Path, name: str) -> list[_Picture]:
    """Sorts the files of one class into images and masks.

    Raises:
        ValueError: If the folder is missing or has no image, or a picture's name is neither an image's nor a
            mask's, or there is a mask without its image.
    """
    if not folder.is_dir():
        raise ValueError(
            f"{folder}: no such folder, expected {', '.join(CLASSES)} with images such as 'benign (1).png'"
        )
    pattern = re.compile(rf"({name} \((\d+)\))(_mask(?:_\d+)?)?\.png")
    images: dict[str, tuple[int, Path]] = {}
    masks: dict[str, list[str]] = {}
    for path in sorted(folder.iterdir()):
        match = pattern.fullmatch(path.name)
        if match is None:
            if path.suffix.lower() in _PICTURES:
                raise ValueError(
                    f"{path}: is neither an image such as '{name} (1).png' nor a mask such as '{name} (1)_mask.png'"
                )
            continue
        if match[3] is None:
            images[match[1]] = (int(match[2]), path)
        else:
            masks.setdefault(match[1], []).append(str(path))
    orphans = [files[0] for stem, files in masks.items() if stem not in images]
    if orphans:
        raise ValueError(f"{orphans[0]}: is a mask without its image, as are {len(orphans) - 1} others")
    if not images:
        raise ValueError(f"{folder}: holds no image such as '{name} (1).png'")
    ordered = sorted(images.items(), key=lambda item: item[1][0])
    return [_Picture(f"{name}/{path.name}", path, tuple(masks.get(stem, ()))) for stem, (_, path) in ordered]
