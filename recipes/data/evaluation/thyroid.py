"""Thyroid nodules in ultrasound, benign or malignant: the benchmark's tables, or DDTI as it is distributed."""

from pathlib import Path

from recipes.data.evaluation.assemble import FRACTIONS, Splits
from recipes.data.evaluation.benchmark import Benchmark, TableOptions, before_underscore, benchmark_set, has_tables
from recipes.data.evaluation.columns import refuse_options
from recipes.data.evaluation.ddti import ddti_set
from recipes.data.evaluation.types import EvaluationSet
from recipes.data.image_files import OnBadImage

CLASSES = ("benign", "malignant")
_BENCHMARK = Benchmark(
    "thyroid",
    ("thyroid_", ""),
    ("label", "thyroid_label"),
    {"benign": 0, "malignant": 1},
    CLASSES,
    "ultrasound",
    before_underscore,
    ("labels stand for TI-RADS as read by radiologists, not for histology",),
)


def thyroid_set(
    root: str | Path,
    *,
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
    """Reads thyroid ultrasound in one of two layouts.

    - The benchmark's: ``thyroid_{train,val,test}_fold1.csv`` of path and malignant or benign, or one such table,
      which is then all test.
    - DDTI's own: ``N.xml`` with the TI-RADS of case N, and its images ``N_1.jpg``, ``N_2.jpg``, ...
      (`recipes.data.evaluation.ddti.ddti_set`).

    TN3K is refused: it has masks of nodules, but no labels.

    Args:
        root: The folder, or a table.
        fold: Of the benchmark.
        image_column: Of the benchmark's tables, by default one of the usual names.
        label_column: Likewise.
        image_root: Where the paths of the tables begin, by default ``root``.
        splits: For DDTI, which has no official ones: draw by case, or take everything for test.
        seed: Of the drawn splits.
        fractions: Of the drawn splits.
        on_bad_image: What to do about files that cannot be read.
        force_dicom: Whether the benchmark's DICOM files without preamble and file meta group are read.

    Raises:
        ValueError: If ``root`` is none of the layouts, or something in it is wrong, or an option
            has no meaning for the layout of ``root``.
    """
    root = Path(root)
    tables = TableOptions(fold, image_column, label_column, image_root, force_dicom)
    if has_tables(root, _BENCHMARK, fold):
        refuse_options(
            f"{root} is of the benchmark's layout",
            splits=(splits, "draw"),
            seed=(seed, 0),
            fractions=(tuple(fractions), FRACTIONS),
        )
        return benchmark_set(root, _BENCHMARK, tables, on_bad_image=on_bad_image)
    if (root / "trainval-image").is_dir() or (root / "test-image").is_dir():
        raise ValueError(
            f"{root}: is TN3K, which has masks of nodules and no label benign or malignant: it is no "
            "classification set. Use DDTI or the benchmark's tables."
        )
    if root.is_dir() and any(root.glob("*.xml")):
        tables.refuse(f"{root} is DDTI's folder")
        return ddti_set(root, splits=splits, seed=seed, fractions=fractions, on_bad_image=on_bad_image)
    raise ValueError(
        f"{root}: expected a table, a folder with thyroid_test_fold{fold}.csv, or DDTI's folder with 1.xml and 1_1.jpg"
    )
