"""The tables of RadImageNet's benchmark: images with one word each, in folds of train, val and test.

Layout (github.com/BMEII-AI/RadImageNet, whose tables later benchmarks took over): ``{prefix}{split}_fold{k}.csv``
beside the folder ``images`` or in a folder ``dataframe`` beside it; paths in them begin with ``images/``.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from recipes.data.evaluation.assemble import assemble, one_hot
from recipes.data.evaluation.columns import read_paths_and_labels, refuse_options
from recipes.data.evaluation.labelled_images import labelled_images
from recipes.data.evaluation.types import EvaluationSet
from recipes.data.image_files import OnBadImage, file_reader
from recipes.data.studies import SPLITS


class Benchmark(NamedTuple):
    """What one set of the benchmark looks like.

    Attributes:
        name: Of the set, also of its prompt file.
        prefixes: What the tables' names may begin with.
        label_columns: What the column of words may be called.
        words: Class of each word.
        classes: Names of the two classes.
        modality: Kind of the images.
        group_of: Patient or exam, from the name of an image without its ending.
        notes: What a reader of a result should know.
    """

    name: str
    prefixes: tuple[str, ...]
    label_columns: tuple[str, ...]
    words: Mapping[str, int]
    classes: tuple[str, str]
    modality: str
    group_of: Callable[[str], str]
    notes: tuple[str, ...] = ()


class TableOptions(NamedTuple):
    """How to read the benchmark's tables: the options that its sets have in common.

    Attributes:
        fold: Which of the five folds.
        image_column: Column of paths; ``None`` takes one of the usual names.
        label_column: Column of words; ``None`` likewise.
        image_root: Folder of the images; ``None`` is the tables' folder.
        force_dicom: Whether DICOM files without preamble and file meta group are read.
    """

    fold: int = 1
    image_column: str | None = None
    label_column: str | None = None
    image_root: str | Path | None = None
    force_dicom: bool = False

    def refuse(self, layout: str) -> None:
        """Refuses them where there are no such tables.

        Args:
            layout: What the folder is, for the message.

        Raises:
            ValueError: Naming those that differ from their default.
        """
        refuse_options(layout, **{name: (value, self._field_defaults[name]) for name, value in self._asdict().items()})


def before_underscore(stem: str) -> str:
    """Returns the exam in ``1054_sagittal_19.000000`` and the case in ``314_1``."""
    return stem.partition("_")[0]


def has_tables(root: Path, benchmark: Benchmark, fold: int) -> bool:
    """Tells whether ``root`` is a table, or a folder with a table of the benchmark."""
    return root.is_file() or any(_table(root, benchmark, split, fold) for split in SPLITS)


def benchmark_set(
    root: Path, benchmark: Benchmark, options: TableOptions, *, on_bad_image: OnBadImage
) -> EvaluationSet:
    """Reads the tables of a folder, or one table as the test split.

    Args:
        root: The folder, or a csv.
        benchmark: Which set.
        options: How to read the tables.
        on_bad_image: What to do about files that cannot be read.

    Raises:
        ValueError: If a table, column, word or image is wrong or missing, or if an exam lies in two splits.
    """
    tables = {"test": root} if root.is_file() else _tables(root, benchmark, options.fold)
    folder = root.parent if root.is_file() else root
    paths: list[str] = []
    labels: list[int] = []
    splits: list[str] = []
    for split, table in tables.items():
        more_paths, more_labels = read_paths_and_labels(
            table,
            image_column=options.image_column,
            label_column=options.label_column,
            label_columns=benchmark.label_columns,
            words=benchmark.words,
        )
        _refuse_masks(more_paths, table)
        paths += more_paths
        labels += more_labels
        splits += [split] * len(more_paths)
    base = folder if options.image_root is None else Path(options.image_root)
    images = labelled_images(
        paths,
        [base / path for path in paths],
        one_hot(labels, 2),
        [benchmark.group_of(Path(path).stem) for path in paths],
        modality=benchmark.modality,
        read=file_reader(options.force_dicom),
    )
    return assemble(
        benchmark.name,
        images,
        splits,
        task="binary-class",
        classes=benchmark.classes,
        where=str(root),
        prompts=benchmark.name,
        on_bad_image=on_bad_image,
        notes=[*benchmark.notes, *([] if root.is_file() else [f"fold {options.fold} of the benchmark's five"])],
    )


def _table(root: Path, benchmark: Benchmark, split: str, fold: int) -> Path | None:
    """Finds the table of one split."""
    for folder in (root, root / "dataframe"):
        for prefix in benchmark.prefixes:
            table = folder / f"{prefix}{split}_fold{fold}.csv"
            if table.is_file():
                return table
    return None


def _tables(root: Path, benchmark: Benchmark, fold: int) -> dict[str, Path]:
    """Finds the table of test, and those of train and val if one of them is there.

    Raises:
        ValueError: If the test table is missing, or one of the other two.
    """
    tables = {split: _table(root, benchmark, split, fold) for split in SPLITS}
    missing = [split for split in SPLITS if tables[split] is None]
    if missing and missing != ["train", "val"]:
        names = ", ".join(f"{benchmark.prefixes[0]}{split}_fold{fold}.csv" for split in missing)
        there = ", ".join(str(table) for table in tables.values() if table is not None)
        raise ValueError(
            f"{root}: lacks the table {names}, though {there} is there. Add it, or pass the path of the test "
            "table instead of the folder to score that one alone."
        )
    return {split: table for split, table in tables.items() if table is not None}


def _refuse_masks(paths: Sequence[str], table: Path) -> None:
    for row, path in enumerate(paths, 1):
        if "_mask" in Path(path).stem:
            raise ValueError(f"{table}: row {row} lists the mask {path!r} as an image: remove the row")
