"""Seconds and memory to read tables of many rows, each in a process of its own."""

import gzip
import multiprocessing
import random
import resource
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from recipes.data.chest.assemble import ChestRows
from recipes.data.chest.chestxray14 import CLASSES as NIH
from recipes.data.chest.chestxray14 import read_chestxray14
from recipes.data.chest.chexpert import CLASSES as CHEXPERT
from recipes.data.chest.chexpert import read_chexpert
from recipes.data.chest.mimic_cxr import CLASSES as MIMIC
from recipes.data.chest.mimic_cxr import read_mimic_cxr
from recipes.data.chest.options import ChestOptions


class TableCost(NamedTuple):
    """What it costs to read one set's tables.

    Attributes:
        name: Of the set.
        rows: Images that the tables list.
        megabytes_on_disk: Size of the tables.
        wall: Seconds by the clock.
        processor: Seconds of processor time.
        megabytes: By how much the process's largest memory grew.
    """

    name: str
    rows: int
    megabytes_on_disk: float
    wall: float
    processor: float
    megabytes: float


def write_chexpert(root: Path, rows: int) -> None:
    """Writes ``train.csv`` of so many rows, and a small ``valid.csv``; no image."""
    rng = random.Random(0)
    header = "Path,Sex,Age,Frontal/Lateral,AP/PA," + ",".join(CHEXPERT)
    for part, count, cells in (("train", rows, ["1.0", "0.0", "-1.0", "", "", ""]), ("valid", 200, ["1.0", "0.0"])):
        lines = (
            f"CheXpert-v1.0-small/{part}/patient{n // 3 + 10**6 * (part == 'valid'):07d}/study{n % 3}/"
            f"view1_frontal.jpg,Female,{n % 90},Frontal,AP,{','.join(rng.choices(cells, k=len(CHEXPERT)))}"
            for n in range(count)
        )
        _write(root / f"{part}.csv", header, lines)


def write_chestxray14(root: Path, rows: int) -> None:
    """Writes ``Data_Entry_2017.csv`` of so many rows, with the comma that ends each, and the two lists of images."""
    rng = random.Random(0)
    names = [f"{n // 4:08d}_{n % 4:03d}.png" for n in range(rows)]
    header = (
        "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
        "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],"
    )
    findings = ["No Finding", *NIH, "Effusion|Mass", "Atelectasis|Effusion|Infiltration"]
    _write(
        root / "Data_Entry_2017.csv",
        header,
        (
            f"{name},{rng.choice(findings)},{n % 4},{n // 4},058Y,M,PA,2682,2749,0.143,0.143,"
            for n, name in enumerate(names)
        ),
    )
    held_out = rows // 20 * 4
    _write(root / "test_list.txt", names[0], names[1:held_out])
    _write(root / "train_val_list.txt", names[held_out], names[held_out + 1 :])


def write_mimic_cxr(root: Path, rows: int) -> None:
    """Writes the three compressed tables, which list so many images, two of each study; no report."""
    rng = random.Random(0)
    keys = [(f"{n:08x}-{n:08x}-{n:08x}-{n:08x}-{n:08x}", 10**7 + n // 6, 5 * 10**7 + n // 2) for n in range(rows)]
    stem = "mimic-cxr-2.0.0-"
    _write(
        root / f"{stem}metadata.csv.gz",
        "dicom_id,subject_id,study_id,ViewPosition,Rows,Columns",
        (f"{image},{patient},{study},{'PA' if study % 2 else 'LATERAL'},3056,2544" for image, patient, study in keys),
    )
    _write(
        root / f"{stem}split.csv.gz",
        "dicom_id,study_id,subject_id,split",
        (f"{i},{s},{p},{('train', 'train', 'validate', 'test')[p % 4]}" for i, p, s in keys),
    )
    cells = ["1.0", "0.0", "-1.0", "", "", ""]
    _write(
        root / f"{stem}chexpert.csv.gz",
        "subject_id,study_id," + ",".join(MIMIC),
        (f"{p},{s}," + ",".join(rng.choices(cells, k=len(MIMIC))) for _, p, s in keys[::2]),
    )


def _write(path: Path, first: str, lines: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    opened: Callable[..., Any] = gzip.open if path.suffix == ".gz" else open
    with opened(path, "wt", encoding="utf-8") as file:
        file.write(first + "\n")
        file.writelines(f"{line}\n" for line in lines)


SETS: dict[str, tuple[Callable[[Path, int], None], Callable[[Path, ChestOptions], ChestRows]]] = {
    "chexpert": (write_chexpert, read_chexpert),
    "chestxray14": (write_chestxray14, read_chestxray14),
    "mimic-cxr": (write_mimic_cxr, read_mimic_cxr),
}
"""What writes and what reads the tables of each set."""


def table_costs(folder: Path, rows: int) -> Iterator[TableCost]:
    """Writes each set's tables below a folder and yields what it costs to read them, labels and splits included."""
    for name, (write, _) in SETS.items():
        root = folder / name
        write(root, rows)
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            yield pool.apply(measure, (name, root))


def measure(name: str, root: Path) -> TableCost:
    """Reads one set's tables in this process."""
    before = _peak_bytes()
    wall, processor = time.perf_counter(), time.process_time()
    rows = SETS[name][1](root, ChestOptions())
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    size = sum(path.stat().st_size for path in root.iterdir() if path.is_file())
    return TableCost(name, len(rows.ids), size / 1e6, wall, processor, (_peak_bytes() - before) / 1e6)


def _peak_bytes() -> int:
    # Where there is /proc: elsewhere a new process begins with the peak of the one that started it.
    status = Path("/proc/self/status")
    if status.is_file():
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
