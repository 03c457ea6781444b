"""The phantom set of four drawn modalities: images with reports, for contrastive pretraining."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from recipes.data.pairs import PairSource
from recipes.data.phantom.arguments import check_sizes, check_split, checked_index, patient_names, study_ids
from recipes.data.phantom.modalities.ct import draw_ct
from recipes.data.phantom.modalities.drawing import Picture, Streams
from recipes.data.phantom.modalities.findings import (
    FINDINGS,
    MODALITIES,
    PER_MODALITY,
    Finding,
    Place,
    findings_of,
)
from recipes.data.phantom.modalities.mri import draw_mri
from recipes.data.phantom.modalities.reports import write_report
from recipes.data.phantom.modalities.ultrasound import draw_ultrasound
from recipes.data.phantom.modalities.xray import draw_xray
from recipes.data.phantom.streams import Purpose, draw_patients, stream
from recipes.data.studies import Box, Study

MIN_SIZE = 64
"""Below this many pixels the smallest findings are no longer drawn faithfully."""

DRAWERS: dict[str, Callable[[str | None, Place | None, Streams, int], Picture]] = {
    "xray": draw_xray,
    "ct": draw_ct,
    "ultrasound": draw_ultrasound,
    "mri": draw_mri,
}
"""How a study of each modality is drawn."""

_NOTE = (
    "Phantom: drawn, not real, radiographs, CT slices, ultrasound pictures and MRI slices. Each study is normal or has "
    "one of its modality's three findings, all four equally likely; the report says which, and where."
)


class PhantomModalitySplit:
    """One split; images are drawn when asked for, everything else is known before.

    Attributes:
        ids: Id of each study.
        texts: Report of each study.
        groups: Patient of each study; a patient's studies are of one modality.
        modalities: Modality of each study.
        labels: Shape ``(N, 12)``, 1 for the finding that is drawn; all 0 where the study is normal.
        findings: Name of the finding of each study, ``None`` where it is normal.
    """

    def __init__(self, count: int, *, seed: int, split: str, size: int) -> None:
        """Draws what each study shows and writes the reports.

        Args:
            count: Number of studies.
            seed: Names the streams, with ``split``.
            split: ``"train"``, ``"val"`` or ``"test"``.
            size: Side of the images in pixels.

        Raises:
            ValueError: If the split is unknown.
        """
        check_split(split)
        self._seed, self._split, self._size = seed, split, size
        self._patients: NDArray[np.int64] = draw_patients(seed, split, count, Purpose.PAIR_GROUPS)
        kinds = stream(seed, split, Purpose.PAIR_MODALITY).integers(len(MODALITIES), size=count)[self._patients]
        states = stream(seed, split, Purpose.PAIR_STATE).integers(PER_MODALITY + 1, size=count)
        self.modalities: Sequence[str] = tuple(MODALITIES[kind] for kind in kinds)
        self._shown: tuple[Finding | None, ...] = tuple(
            (*findings_of(modality), None)[state] for modality, state in zip(self.modalities, states, strict=True)
        )
        self.findings: Sequence[str | None] = tuple(shown.name if shown else None for shown in self._shown)
        self.labels: NDArray[np.float32] = np.array(
            [[shown is finding for finding in FINDINGS] for shown in self._shown], dtype=np.float32
        ).reshape(count, len(FINDINGS))
        self.ids: Sequence[str] = study_ids(split, count)
        self.groups: Sequence[str] = patient_names(split, self._patients)
        self.texts: Sequence[str] = tuple(self._write(index) for index in range(count))

    def __len__(self) -> int:
        """Returns the number of studies."""
        return len(self.ids)

    def __getitem__(self, index: int) -> Study:
        """Draws a study; the same index always gives the same bits."""
        index = checked_index(index, len(self))
        name, modality = self.findings[index], self.modalities[index]
        streams = Streams(
            patient=self._stream(Purpose.PAIR_ANATOMY, int(self._patients[index])),
            acquisition=self._stream(Purpose.PAIR_ACQUISITION, index),
            lesion=self._stream(Purpose.PAIR_LESION, index),
        )
        picture = DRAWERS[modality](name, self._place(index), streams, self._size)
        boxes = () if name is None or picture.box is None else (Box(name, *picture.box),)
        return Study(
            id=self.ids[index],
            group=self.groups[index],
            image=picture.image,
            text=self.texts[index],
            labels=self.labels[index].copy(),
            boxes=boxes,
            modality=modality,
        )

    def _stream(self, purpose: Purpose, *index: int) -> np.random.Generator:
        return stream(self._seed, self._split, purpose, *index)

    def _place(self, index: int) -> Place | None:
        shown = self._shown[index]
        if shown is None:
            return None
        return shown.places[self._stream(Purpose.PAIR_PLACE, index).integers(len(shown.places))]

    def _write(self, index: int) -> str:
        rng = self._stream(Purpose.PAIR_REPORT, index)
        return write_report(self.modalities[index], self._shown[index], self._place(index), rng)


def phantom_modalities_source(
    *, seed: int = 0, train: int = 1600, val: int = 240, test: int = 480, size: int = 96
) -> PairSource:
    """Builds the phantom set of four modalities: one drawn image, its report and its finding's box per study.

    Args:
        seed: Names the data set; each seed is another one.
        train: Number of training studies.
        val: Number of validation studies.
        test: Number of test studies.
        size: Side of the square images in pixels, at least 64.

    Raises:
        ValueError: If an argument is not a whole number or is too small.

    Example:
        >>> source = phantom_modalities_source(train=8, val=4, test=4)
        >>> source.train[3].image.shape, source.train.labels.shape
        ((96, 96), (8, 12))
    """
    counts = {"train": train, "val": val, "test": test}
    check_sizes(smallest_side=MIN_SIZE, seed=seed, size=size, **counts)
    splits = {split: PhantomModalitySplit(count, seed=seed, split=split, size=size) for split, count in counts.items()}
    return PairSource(name="phantom-modalities", modalities=tuple(sorted(MODALITIES)), notes=(_NOTE,), **splits)
