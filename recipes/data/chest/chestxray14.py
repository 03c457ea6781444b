"""ChestX-ray14: 112,120 frontal radiographs of the NIH with 14 findings."""

import os
from pathlib import Path

import numpy as np

from recipes.data.arguments import argument
from recipes.data.chest.assemble import ChestRows, chest_source
from recipes.data.chest.files import check_folder, read_names, table_of
from recipes.data.chest.options import ChestOptions
from recipes.data.studies import StudySource
from recipes.data.tables.columns import filled
from recipes.data.tables.csv_file import read_header, read_table
from recipes.data.tables.labels import labels_from_column

CLASSES = (
    "Atelectasis",
    "Cardiomegaly",
    "Effusion",
    "Infiltration",
    "Mass",
    "Nodule",
    "Pneumonia",
    "Pneumothorax",
    "Consolidation",
    "Edema",
    "Emphysema",
    "Fibrosis",
    "Pleural_Thickening",
    "Hernia",
)
_TABLES = ("Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv")
_LISTS = {"train": "train_val_list.txt", "test": "test_list.txt"}
_IMAGE, _FINDINGS, _PATIENT, _VIEW = "Image Index", "Finding Labels", "Patient ID", "View Position"
_ABOUT = {"sex": ("Patient Sex", "Patient Gender"), "age": ("Patient Age",)}
"""Columns that say more of a patient, by the names of the two editions."""


def chestxray14_source(root: str | Path, options: ChestOptions) -> StudySource:
    """Reads ChestX-ray14 in its official splits.

    ``Data_Entry_2017_v2020.csv`` or ``Data_Entry_2017.csv`` (of which the header and each row end with a comma) lists
    the images; ``train_val_list.txt`` and ``test_list.txt`` split them. Images lie in ``images/`` or, as the archives
    unpack, in ``images_001/images/`` to ``images_012/images/``. There are no reports.

    Args:
        root: The set's folder.
        options: Choices of the user.

    Raises:
        ValueError: If a table, list, column or image is missing, an image is in neither list or in both, or a finding
            is unknown; the message names the file.

    Reference:
        Wang et al., ChestX-ray8, CVPR 2017.
    """
    root = Path(root)
    rows = read_chestxray14(root, options)
    return chest_source(rows, options)


def read_chestxray14(root: Path, options: ChestOptions) -> ChestRows:
    """Reads the table and the lists, and where the images lie; see `chestxray14_source`."""
    check_folder(root, "chestxray14")
    if options.uncertain != "ignore" or options.blank is not None:
        unused = f"{argument('uncertain')} and {argument('blank')}"
        raise ValueError(f"chestxray14 has no uncertain and no blank labels: leave {unused} out")
    csv = table_of(root, _TABLES)
    header = read_header(csv)
    about = {
        name: next(column for column in columns if column in header)
        for name, columns in _ABOUT.items()
        if any(column in header for column in columns)
    }
    table = read_table(csv, [_IMAGE, _FINDINGS, _PATIENT, _VIEW, *about.values()])
    ids = filled(table[_IMAGE], _IMAGE, str(csv))
    _, _, labels = labels_from_column(
        table[_FINDINGS],
        separator="|",
        task="multi-label",
        classes=CLASSES,
        blank="ignore",
        negative_label="No Finding",
        where=f"{csv}: column {_FINDINGS!r}",
    )
    folder_of = _image_folders(root)
    folders = {folder: str(folder) for folder in dict.fromkeys(folder_of.values())}
    usual = str(root / "images")
    unlabelled = int(np.isnan(labels).all(1).sum())
    return ChestRows(
        name="chestxray14",
        where=str(csv),
        root=root,
        classes=CLASSES,
        ids=ids,
        paths=[os.path.join(folders[folder_of[name]] if name in folder_of else usual, name) for name in ids],
        labels=labels,
        groups=filled(table[_PATIENT], _PATIENT, str(csv)),
        views=table[_VIEW],
        attributes={name: table[column] for name, column in about.items()},
        splits=_official_splits(root, ids, str(csv)) if options.official_splits else None,
        notes=(f"{unlabelled} images have a blank cell of findings: their labels are unknown",) if unlabelled else (),
    )


def _image_folders(root: Path) -> dict[str, Path]:
    """Returns the folder of each file in ``images`` or ``images_NNN/images``."""
    folders = [root / "images", *sorted(root.glob("images_*/images")), *sorted(root.glob("images_*"))]
    return {entry.name: folder for folder in folders if folder.is_dir() for entry in os.scandir(folder)}


def _official_splits(root: Path, ids: tuple[str, ...], where: str) -> list[str]:
    """Reads the two lists of images and looks every image of the table up."""
    split_of: dict[str, str] = {}
    for split, file in _LISTS.items():
        path = root / file
        if not path.is_file():
            raise ValueError(
                f"{root}: lacks {file}, which names the images of the official split. Get it, or draw a split by "
                f"patient ({argument('official_splits', 'False')})."
            )
        for name in read_names(path):
            if split_of.setdefault(name, split) != split:
                raise ValueError(f"{path}: lists {name!r}, which {_LISTS['train']} lists too: get both lists anew")
    absent = [name for name in ids if name not in split_of]
    if absent:
        raise ValueError(
            f"{where}: {len(absent)} of {len(ids)} images are in neither {' nor '.join(_LISTS.values())}, such as "
            f"{absent[0]!r}: get the lists anew, or draw a split by patient "
            f"({argument('official_splits', 'False')})"
        )
    return [split_of[name] for name in ids]
