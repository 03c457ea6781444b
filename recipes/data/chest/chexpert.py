"""CheXpert: 224,316 radiographs of Stanford with 14 labels, some of them uncertain."""

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from recipes.data.chest.assemble import ChestRows, chest_source
from recipes.data.chest.files import check_folder, table_of
from recipes.data.chest.options import ChestOptions
from recipes.data.studies import StudySource
from recipes.data.tables.columns import filled
from recipes.data.tables.csv_file import read_header, read_table
from recipes.data.tables.labels import is_blank, labels_from_columns

CLASSES = (
    "No Finding",
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
)
COMPETITION = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion")
"""The five tasks over which the set's leaderboard takes the mean."""

_PATIENT = re.compile(r"patient\d+")
_REPORTS = ("report", "section_impression", "section_findings", "Report Impression")


class _Table(NamedTuple):
    csv: Path
    ids: list[str]
    labels: np.ndarray
    groups: list[str]
    views: list[str]
    texts: list[str | None] | None
    about: dict[str, list[str]]


def chexpert_source(root: str | Path, options: ChestOptions) -> StudySource:
    """Reads CheXpert in its official splits.

    ``train.csv`` and ``valid.csv`` list the images by paths that begin with the name of the folder as it was published
    (``CheXpert-v1.0-small/train/patient00001/study1/view1_frontal.jpg``); the folder may be called differently now.
    With ``test.csv`` (the 500 patients published later), ``valid.csv`` is for validation; without it, ``valid.csv`` is
    the test set, as in most work, and validation patients are drawn from ``train.csv``. A column ``report`` (CheXpert
    Plus) becomes the text.

    Args:
        root: The set's folder.
        options: Choices of the user.

    Raises:
        ValueError: If a table, a column or an image is missing, a path names no patient, or a label is none of 1, 0, -1
            and blank; the message names the file.

    Reference:
        Irvin et al., CheXpert, AAAI 2019.
    """
    return chest_source(read_chexpert(Path(root), options), options)


def read_chexpert(root: Path, options: ChestOptions) -> ChestRows:
    """Reads the tables; see `chexpert_source`."""
    check_folder(root, "chexpert")
    has_test = any((root / name).is_file() for name in ("test.csv", "test.csv.gz"))
    roles = {"train": "train", "valid": "val" if has_test else "test"} | ({"test": "test"} if has_test else {})
    tables = {split: _read(table_of(root, [f"{name}.csv"]), options) for name, split in roles.items()}
    ids = [name for table in tables.values() for name in table.ids]
    texts = [text for table in tables.values() for text in table.texts or [None] * len(table.ids)]
    return ChestRows(
        name="chexpert",
        where=str(tables["train"].csv),
        root=root,
        classes=CLASSES,
        ids=ids,
        paths=[f"{root}/{name}" for name in ids],
        labels=np.concatenate([table.labels for table in tables.values()]),
        groups=[group for table in tables.values() for group in table.groups],
        views=[view for table in tables.values() for view in table.views],
        attributes={
            name.lower(): [cell for table in tables.values() for cell in table.about.get(name, [""] * len(table.ids))]
            for name in ("Sex", "Age")
        },
        splits=[split for split, table in tables.items() for _ in table.ids],
        texts=texts if any(texts) else None,
        notes=(f"uncertain labels: {options.uncertain}; blank labels: {options.blank_labels()}",),
        class_sets={"competition": COMPETITION},
    )


def _read(csv: Path, options: ChestOptions) -> _Table:
    """Reads one of the tables."""
    header = read_header(csv)
    report = next((name for name in _REPORTS if name in header), None) if options.texts else None
    # The later test set is published with paths and labels alone.
    view_columns = [name for name in ("Frontal/Lateral", "AP/PA") if name in header or not csv.name.startswith("test")]
    about = [name for name in ("Sex", "Age") if name in header]
    table = read_table(csv, ["Path", *view_columns, *about, *CLASSES, *([] if report is None else [report])])
    paths = filled(table["Path"], "Path", str(csv))
    groups = [_patient(path) for path in paths]
    if "" in groups:
        row = groups.index("")
        raise ValueError(
            f"{csv}: column 'Path', row {row + 1}: expected a path such as "
            f"CheXpert-v1.0-small/train/patient00001/study1/view1_frontal.jpg, got {paths[row]!r}"
        )
    labels = labels_from_columns(
        {name: table[name] for name in CLASSES},
        task="multi-label",
        uncertain=options.uncertain,
        blank=options.blank_labels(),
        where=str(csv),
    )
    texts = None if report is None else [None if is_blank(text) else text.strip() for text in table[report]]
    if len(view_columns) == 2:
        views = [_view(kind, side) for kind, side in zip(*(table[name] for name in view_columns), strict=True)]
    else:
        views = ["Lateral" if "lateral" in path else "Frontal" for path in paths]
    return _Table(
        csv, [_below_set(path) for path in paths], labels, groups, views, texts, {name: table[name] for name in about}
    )


def _patient(path: str) -> str:
    """Returns the patient's folder in a path, the third part of those that the set publishes; empty without any."""
    parts = path.split("/", 3)
    if len(parts) == 4 and parts[2].startswith("patient"):
        return parts[2]
    match = _PATIENT.search(path)
    return match.group() if match else ""


def _view(kind: str, side: str) -> str:
    """Names a view by its position; a few frontal images have that of a lateral one (LL, RL) and keep both words."""
    if side in ("AP", "PA"):
        return side
    return f"{kind} {side}".strip()


def _below_set(path: str) -> str:
    """Takes the set's own name off the beginning of a path."""
    first, _, rest = path.partition("/")
    return rest if first not in ("train", "valid", "test") else path
