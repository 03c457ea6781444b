"""Open-i, the chest radiographs and reports of Indiana University."""

import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from recipes.data.arguments import argument
from recipes.data.chest.assemble import ChestRows, chest_source
from recipes.data.chest.files import check_folder
from recipes.data.chest.options import ChestOptions
from recipes.data.studies import StudySource

TERMS = {
    "Atelectasis": ("pulmonary atelectasis", "atelectasis"),
    "Calcified Granuloma": ("calcified granuloma",),
    "Cardiomegaly": ("cardiomegaly",),
    "Consolidation": ("consolidation",),
    "Edema": ("pulmonary edema",),
    "Effusion": ("pleural effusion",),
    "Emphysema": ("emphysema", "pulmonary emphysema"),
    "Fracture": ("fractures, bone",),
    "Granuloma": ("granuloma", "granulomatous disease"),
    "Hernia": ("hernia, hiatal",),
    "Infiltration": ("infiltrate",),
    "Mass": ("mass",),
    "Nodule": ("nodule",),
    "Opacity": ("opacity",),
    "Pneumonia": ("pneumonia",),
    "Pneumothorax": ("pneumothorax",),
}
"""Terms of the reports' MeSH headings, in lower case and before the first ``/``, by finding."""

CLASSES = tuple(TERMS)
_NOT_INDEXED = "no indexing"
_REPORT_FOLDERS = ("ecgen-radiology", "reports", ".")
_ARCHIVE = "NLMCXR_reports.tgz"
_IMAGE_FOLDERS = ("NLMCXR_png", "images", "png", ".", "NLMCXR_dcm")


def openi_source(root: str | Path, options: ChestOptions) -> StudySource:
    """Reads Open-i; it has no official splits, so they are drawn by report.

    The reports are XML files in ``ecgen-radiology/`` or in the archive ``NLMCXR_reports.tgz``; the images
    ``CXR1_1_IM-0001-3001.png`` lie in the folder itself, in ``NLMCXR_png/`` or in ``images/``. The findings are those
    of `TERMS`: present where a major MeSH heading names one of its terms, absent otherwise, and unknown where the
    indexer wrote "No Indexing". The text is the sections comparison, indication, findings and impression, each under
    its header; ``XXXX`` stands for words that were taken out. A report is a group: each is of another patient.

    Args:
        root: The set's folder.
        options: Choices of the user.

    Raises:
        ValueError: If there are no reports or images, an XML file cannot be read, or an image is listed twice; the
            message names the file.

    Reference:
        Demner-Fushman et al., Preparing a collection of radiology examinations, JAMIA 2016.
    """
    return chest_source(read_openi(Path(root), options), options)


def read_openi(root: Path, options: ChestOptions) -> ChestRows:
    """Reads the reports; see `openi_source`."""
    check_folder(root, "openi")
    if options.uncertain != "ignore" or options.blank is not None:
        unused = f"{argument('uncertain')} and {argument('blank')}"
        raise ValueError(f"openi has no uncertain and no blank labels: leave {unused} out")
    folder = next((root / name for name in _IMAGE_FOLDERS if next((root / name).glob("CXR*.*"), None)), None)
    if folder is None:
        raise ValueError(
            f"{root}: holds no images CXR*.png, neither itself nor in {', '.join(_IMAGE_FOLDERS[:3])}: unpack "
            "NLMCXR_png.tgz there"
        )
    ids: list[str] = []
    groups: list[str] = []
    texts: list[str | None] = []
    labels: list[list[float]] = []
    imageless = 0
    for name, xml in _reports(root):
        images = [image.get("id", "").strip() for image in xml.iter("parentImage")]
        imageless += not images
        for image in images:
            ids.append(image)
            groups.append(name)
            texts.append(_text(xml) if options.texts else None)
            labels.append(_labels(xml))
    notes = [f"{imageless} reports have no image"] if imageless else []
    unindexed = sum(np.isnan(row[0]) for row in labels)
    if unindexed:
        notes.append(f"{unindexed} of {len(ids)} images are not indexed: their labels are unknown")
    if not ids:
        raise ValueError(f"{root}: no report names an image (parentImage)")
    return ChestRows(
        name="openi",
        where=str(root),
        root=folder,
        classes=CLASSES,
        ids=ids,
        paths=[f"{folder}/{name}.png" for name in ids],
        labels=np.array(labels, np.float32),
        groups=groups,
        texts=texts,
        notes=tuple(notes),
    )


def _reports(root: Path) -> Iterator[tuple[str, Any]]:
    """Yields name and content of each XML file, sorted by name."""
    folder = next((root / name for name in _REPORT_FOLDERS if next((root / name).glob("*.xml"), None)), None)
    if folder is not None:
        for path in sorted(folder.glob("*.xml")):
            yield path.stem, _parse(path.read_bytes(), str(path))
        return
    archive = root / _ARCHIVE
    if not archive.is_file():
        raise ValueError(f"{root}: holds no reports, neither ecgen-radiology/*.xml nor {_ARCHIVE}")
    contents: dict[str, bytes] = {}
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                file = tar.extractfile(member) if member.isfile() and member.name.endswith(".xml") else None
                if file is not None:
                    contents[Path(member.name).stem] = file.read()
    except (tarfile.TarError, OSError, EOFError) as error:
        raise ValueError(f"cannot read the reports in {str(archive)!r}: {error}. Get it anew") from error
    for name in sorted(contents):
        yield name, _parse(contents[name], f"{archive}: {name}.xml")


def _parse(content: bytes, where: str) -> Any:
    try:
        return ElementTree.fromstring(content)
    except ElementTree.ParseError as error:
        raise ValueError(f"cannot read the XML file {where!r}: {error}") from error


def _text(xml: Any) -> str | None:
    """Joins the sections of a report, each behind its header."""
    sections = [(part.get("Label", ""), " ".join((part.text or "").split())) for part in xml.iter("AbstractText")]
    return "\n".join(f"{label.upper()}: {text}" for label, text in sections if text) or None


def _labels(xml: Any) -> list[float]:
    """Reads the findings off the major MeSH headings, ``Term/qualifier/qualifier``."""
    terms = {(node.text or "").partition("/")[0].strip().lower() for node in xml.iter("major")} - {""}
    if not terms or _NOT_INDEXED in terms:
        return [float("nan")] * len(CLASSES)
    return [float(any(name in terms for name in names)) for names in TERMS.values()]
