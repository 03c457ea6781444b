"""MIMIC-CXR-JPG: 377,110 radiographs of Boston with the labels of CheXpert and their reports."""

import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from zipfile import BadZipFile, ZipFile

import numpy as np
from numpy.typing import NDArray

from recipes.data.chest.assemble import ChestRows, chest_source
from recipes.data.chest.chexpert import CLASSES as _CHEXPERT_ORDER
from recipes.data.chest.chexpert import COMPETITION
from recipes.data.chest.files import check_folder, table_of
from recipes.data.chest.options import ChestOptions
from recipes.data.studies import StudySource
from recipes.data.tables.columns import filled
from recipes.data.tables.csv_file import read_table
from recipes.data.tables.labels import labels_from_columns

CLASSES = tuple(sorted(_CHEXPERT_ORDER))
"""The labels of CheXpert, in the order of this set's table."""

_STEM = "mimic-cxr-2.0.0"
_ZIP = "mimic-cxr-reports.zip"
_CHUNK = 256
"""Reports that a thread reads at a time."""

_SPLITS = {"train": "train", "validate": "val", "test": "test"}


def mimic_cxr_source(root: str | Path, options: ChestOptions) -> StudySource:
    """Reads MIMIC-CXR-JPG in its official splits.

    Three tables, each possibly compressed, are joined: ``mimic-cxr-2.0.0-metadata.csv`` lists the images,
    ``-split.csv`` splits them and ``-chexpert.csv`` labels the studies. Images are
    ``files/p10/p10000032/s50414267/<dicom_id>.jpg``, or of that name with another ending (``.dcm`` in MIMIC-CXR). A
    study's report, if it was put there, is ``files/p10/p10000032/s50414267.txt``, the same below
    ``mimic-cxr-reports/``, or within ``mimic-cxr-reports.zip`` as it is distributed; all images of a study share it.

    Args:
        root: The set's folder, which holds the tables and ``files/``.
        options: Choices of the user.

    Raises:
        ValueError: If a table, a column or an image is missing, an image has no split, or a study is labelled twice;
            the message names the file.

    Reference:
        Johnson et al., MIMIC-CXR-JPG, arXiv:1901.07042.
    """
    return chest_source(read_mimic_cxr(Path(root), options), options)


def read_mimic_cxr(root: Path, options: ChestOptions) -> ChestRows:
    """Reads and joins the tables, and reads the reports; see `mimic_cxr_source`."""
    check_folder(root, "mimic-cxr")
    metadata, split, labels = (table_of(root, [f"{_STEM}-{name}.csv"]) for name in ("metadata", "split", "chexpert"))
    table = read_table(metadata, ["dicom_id", "subject_id", "study_id", "ViewPosition"])
    ids, subjects, studies = (
        filled(table[name], name, str(metadata)) for name in ("dicom_id", "subject_id", "study_id")
    )
    values, unlabelled = _labels(labels, studies, options)
    folders = {study: f"p{subject[:2]}/p{subject}/s{study}" for study, subject in zip(studies, subjects, strict=True)}
    texts, notes = _reports(root, folders, studies) if options.texts else (None, [])
    if unlabelled:
        notes.append(f"{unlabelled} of {len(ids)} images are of a study that {labels.name} lacks: labels unknown")
    return ChestRows(
        name="mimic-cxr",
        where=str(metadata),
        root=root,
        classes=CLASSES,
        ids=ids,
        paths=[f"{root}/files/{folders[study]}/{name}.jpg" for study, name in zip(studies, ids, strict=True)],
        labels=values,
        groups=subjects,
        views=table["ViewPosition"],
        splits=_splits(split, ids, metadata),
        texts=texts,
        notes=(f"uncertain labels: {options.uncertain}; blank labels: {options.blank_labels()}", *notes),
        class_sets={"competition": COMPETITION},
    )


def _splits(csv: Path, ids: Sequence[str], metadata: Path) -> list[str]:
    """Looks up the split of each image."""
    table = read_table(csv, ["dicom_id", "split"])
    split_of = dict(zip(table["dicom_id"], table["split"], strict=True))
    unknown = [word for word in dict.fromkeys(table["split"]) if word not in _SPLITS]
    if unknown:
        row = table["split"].index(unknown[0]) + 1
        raise ValueError(
            f"{csv}: column 'split', row {row}: a split must be one of {', '.join(_SPLITS)}, got {unknown[0]!r}"
        )
    absent = [name for name in ids if name not in split_of]
    if absent:
        raise ValueError(
            f"{csv}: lacks {len(absent)} of the {len(ids)} images of {metadata.name}, such as {absent[0]!r}: both must "
            "be of one release"
        )
    return [_SPLITS[split_of[name]] for name in ids]


def _labels(csv: Path, studies: Sequence[str], options: ChestOptions) -> tuple[NDArray[np.float32], int]:
    """Reads the labels of each image's study; NaN, and counted, where the table lacks it."""
    table = read_table(csv, ["study_id", *CLASSES])
    keys = filled(table["study_id"], "study_id", str(csv))
    row_of = {key: row for row, key in enumerate(keys)}
    if len(row_of) < len(keys):
        row = next(row for row, key in enumerate(keys) if row_of[key] != row)
        raise ValueError(
            f"{csv}: rows {row + 1} and {row_of[keys[row]] + 1} both label the study {keys[row]!r}: remove one"
        )
    values = labels_from_columns(
        {name: table[name] for name in CLASSES},
        task="multi-label",
        uncertain=options.uncertain,
        blank=options.blank_labels(),
        where=str(csv),
    )
    values = np.concatenate([values, np.full((1, len(CLASSES)), np.nan, np.float32)])
    rows = np.array([row_of.get(study, len(keys)) for study in studies])
    unlabelled = int((rows == len(keys)).sum())
    if unlabelled == len(rows):
        raise ValueError(f"{csv}: labels none of the {len(rows)} images' studies: all tables must be of one release")
    return values[rows], unlabelled


def _reports(root: Path, folders: dict[str, str], studies: Sequence[str]) -> tuple[list[str | None] | None, list[str]]:
    """Reads the report of each study once; none at all where there are no reports."""
    bases = [root / "files", root / "mimic-cxr-reports" / "files", root / "mimic-cxr-reports"]

    def read(study: str) -> str | None:
        paths = (base / f"{folders[study]}.txt" for base in bases)
        path = next((path for path in paths if path.is_file()), None)
        return None if path is None else _decoded(path.read_bytes(), str(path))

    bases = [base for base in bases if base.is_dir()]
    text_of: dict[str, str | None] = dict.fromkeys(folders)
    if bases:
        names = list(folders)
        chunks = [names[start : start + _CHUNK] for start in range(0, len(names), _CHUNK)]
        with ThreadPoolExecutor() as pool:
            for part in pool.map(lambda chunk: {study: read(study) for study in chunk}, chunks):
                text_of |= part
    if (root / _ZIP).is_file():
        text_of |= _zipped(root / _ZIP, {study: folders[study] for study, text in text_of.items() if text is None})
    count = sum(text is not None for text in text_of.values())
    if count == 0:
        return None, ["no reports beside the images: studies are without text"]
    note = [] if count == len(text_of) else [f"{len(text_of) - count} of {len(text_of)} studies have no report"]
    return [text_of[study] for study in studies], note


def _zipped(path: Path, folders: dict[str, str]) -> dict[str, str | None]:
    """Reads the reports of studies out of the archive, without unpacking it."""
    try:
        with ZipFile(path) as archive:
            # Below files/ or mimic-cxr-reports/files/: what is behind counts.
            place_of = {"/".join(name.split("/")[-3:]): name for name in archive.namelist()}
            return {
                study: _decoded(archive.read(place), f"{path}: {place}")
                for study, folder in folders.items()
                if (place := place_of.get(f"{folder}.txt")) is not None
            }
    except (BadZipFile, zlib.error, EOFError, OSError) as error:
        raise ValueError(f"cannot read the reports in {str(path)!r}: {error}. Get the archive anew") from error


def _decoded(data: bytes, where: str) -> str | None:
    try:
        return data.decode("utf-8").strip() or None
    except UnicodeDecodeError as error:
        raise ValueError(f"cannot read the report {where!r}: {error}. Save it as UTF-8") from error
