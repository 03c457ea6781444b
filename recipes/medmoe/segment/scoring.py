"""Maps and known regions of studies: of a run's own split, or of image files with masks."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from recipes.data.images.read import read_image
from recipes.data.pairs import PairSplit
from recipes.data.studies import Study
from recipes.medmoe.explain.seen import Seen, look
from recipes.medmoe.inference.session import ModelSession
from recipes.medmoe.segment.masks import mask_region, masks_of
from recipes.medmoe.segment.regions import box_region, enlarged


class Region(NamedTuple):
    """A finding of a study.

    Attributes:
        finding: Its name.
        group: The patient.
        map: ``(S, S)``, the enlarged word map.
        known: ``(S, S)``, where the finding is; ``None`` where that is not known.
        picture: ``(S, S)`` or ``(S, S, 3)``, the fitted image.
        name: The study's id.
    """

    finding: str
    group: str
    map: NDArray[np.float32]
    known: NDArray[np.bool_] | None
    picture: NDArray[np.uint8]
    name: str


def regions_of_split(session: ModelSession, split: PairSplit, title: str) -> Iterator[Region]:
    """Yields a region for each finding with a box that the study's report names.

    Args:
        session: The run.
        split: The studies.
        title: Of the progress bar.
    """
    size = session.batch_size
    for start in tqdm(range(0, len(split), size), desc=title, leave=False):
        rows = range(start, min(start + size, len(split)))
        for one in look(session, [study for row in rows if (study := split[row]).boxes]):
            for finding, boxes in one.findings().items():
                values = one.finding_map(finding)
                if values is not None:
                    side = one.picture.shape[0]
                    yield _region(one, finding, values, box_region(boxes, side))


def regions_of_files(
    session: ModelSession,
    files: Sequence[Path],
    text: str,
    finding: str,
    *,
    modality: str | None = None,
    masks: Path | None = None,
    force_dicom: bool = False,
) -> Iterator[Region]:
    """Yields the region of a finding in each image; images are read batch by batch.

    Args:
        session: The run.
        files: The images.
        text: The text that all images share.
        finding: The words of it whose map is taken.
        modality: Kind of the images, where it chooses the expert.
        masks: Folder of their masks.
        force_dicom: Whether DICOM files without preamble are read.

    Raises:
        ValueError: If the text does not name the finding, or an image or a mask cannot be read.
    """
    size = session.batch_size
    for start in tqdm(range(0, len(files), size), desc="segment", leave=False):
        batch = files[start : start + size]
        images = [read_image(file, force_dicom=force_dicom) for file in batch]
        none = np.zeros(0, np.float32)
        studies = [
            Study(str(file), str(file), image, text, none, modality=modality)
            for file, image in zip(batch, images, strict=True)
        ]
        for file, image, one in zip(batch, images, look(session, studies), strict=True):
            values = one.finding_map(finding)
            if values is None:
                raise ValueError(f"finding: the text {text!r} holds no word of {finding!r} (--finding, --text).")
            found = [] if masks is None else masks_of(file, masks)
            known = mask_region(found, image.shape, one.picture.shape[0]) if found else None
            yield _region(one, finding, values, known)


def _region(one: Seen, finding: str, values: NDArray[np.float32], known: NDArray[np.bool_] | None) -> Region:
    enlarged_map = enlarged(values, one.picture.shape[0])
    return Region(finding, one.study.group, enlarged_map, known, one.picture, one.study.id)
