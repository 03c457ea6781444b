"""Tears in knee MRI: the anterior cruciate ligament (ACL) and the meniscus, one slice per study."""

from pathlib import Path
from typing import Literal

from recipes.data.evaluation.benchmark import Benchmark, TableOptions, before_underscore, benchmark_set, has_tables
from recipes.data.evaluation.columns import refuse_options
from recipes.data.evaluation.mrnet import Plane, has_mrnet, mrnet_set
from recipes.data.evaluation.types import EvaluationSet
from recipes.data.image_files import OnBadImage
from recipes.data.tables.labels import check_choice

Finding = Literal["acl", "meniscus"]

CLASSES: dict[Finding, tuple[str, str]] = {
    "acl": ("no ACL tear", "ACL tear"),
    "meniscus": ("no meniscal tear", "meniscal tear"),
}
_WORDS = {"no": 0, "yes": 1, "n": 0, "p": 1, "0": 0, "1": 1}


def knee_set(
    root: str | Path,
    finding: Finding,
    *,
    fold: int = 1,
    image_column: str | None = None,
    label_column: str | None = None,
    image_root: str | Path | None = None,
    plane: Plane = "sagittal",
    position: float = 0.5,
    val_fraction: float = 0.1,
    seed: int = 0,
    on_bad_image: OnBadImage = "error",
    force_dicom: bool = False,
) -> EvaluationSet:
    """Reads knee MRI in one of two layouts.

    - The benchmark's 2-D form: ``{train,val,test}_fold1.csv`` for the ACL, ``meniscus_{train,val,test}_fold1.csv``
      for the meniscus, each of path and yes or no (the meniscus's: p or n); or one such table, all test. The exam
      is the number before the first underscore of an image's name. A slice is labelled by what *it* shows.
    - MRNet's own: volumes and a label per exam (`recipes.data.evaluation.mrnet.mrnet_set`), one slice of
      which is the study. A slice may miss the tear that its exam is labelled with.

    Args:
        root: The folder, or a table of the benchmark.
        finding: Which of the two.
        fold: Of the benchmark.
        image_column: Of the benchmark's tables, by default one of the usual names.
        label_column: Likewise.
        image_root: Where the paths of the tables begin, by default ``root``.
        plane: Of MRNet's volumes.
        position: Slice of MRNet's volumes: 0 the first, 0.5 the middle one, 1 the last.
        val_fraction: Share of MRNet's training exams to validate on.
        seed: Of the draw of MRNet's validation exams.
        on_bad_image: What to do about files that cannot be read.
        force_dicom: Whether the benchmark's DICOM files without preamble and file meta group are read.

    Raises:
        ValueError: If ``root`` is none of the layouts, or something in it is wrong, or an option
            has no meaning for the layout of ``root``.
    """
    root = Path(root)
    check_choice("finding", finding, Finding)
    benchmark = Benchmark(
        finding,
        ("", "acl_") if finding == "acl" else ("meniscus_",),
        ("label", f"{finding}_label"),
        _WORDS,
        CLASSES[finding],
        "mri",
        before_underscore,
    )
    tables = TableOptions(fold, image_column, label_column, image_root, force_dicom)
    if has_tables(root, benchmark, fold):
        refuse_options(
            f"{root} is of the benchmark's layout",
            plane=(plane, "sagittal"),
            position=(position, 0.5),
            val_fraction=(val_fraction, 0.1),
            seed=(seed, 0),
        )
        return benchmark_set(root, benchmark, tables, on_bad_image=on_bad_image)
    if has_mrnet(root, finding):
        tables.refuse(f"{root} is MRNet's folder")
        return mrnet_set(
            root,
            finding,
            CLASSES[finding],
            plane=plane,
            position=position,
            val_fraction=val_fraction,
            seed=seed,
            on_bad_image=on_bad_image,
        )
    raise ValueError(
        f"{root}: expected a table, a folder with {benchmark.prefixes[0]}test_fold{fold}.csv, "
        f"or MRNet's folder with valid-{finding}.csv"
    )
