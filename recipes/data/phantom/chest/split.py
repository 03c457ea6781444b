"""What the splits of both editions of drawn radiographs have in common."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from recipes.data.phantom.arguments import check_split, checked_index, patient_names, study_ids
from recipes.data.phantom.chest.lesions import DRAWERS, LesionDrawer
from recipes.data.phantom.chest.radiograph import draw_radiograph
from recipes.data.phantom.chest.reports import Person, draw_person
from recipes.data.phantom.streams import Purpose, draw_patients, stream
from recipes.data.studies import Box, Study


class RadiographSplit(ABC):
    """Drawn radiographs with notes; images are drawn one at a time, when they are read.

    A subclass keeps its latents before this class writes the notes.

    Args:
        labels: Shape ``(N, C)``, 0 or 1.
        seed: Names the streams, with ``split``.
        split: ``"train"``, ``"val"`` or ``"test"``.
        size: Side of the images in pixels.

    Attributes:
        labels: As given.
        ids: Id of each study.
        groups: Patient of each study.
        texts: Note of each study.

    Raises:
        ValueError: If the split is unknown.
    """

    drawers: Sequence[LesionDrawer] = DRAWERS
    """Of the lesions, in the order in which :meth:`_visible` names them."""

    def __init__(self, labels: NDArray[np.float32], *, seed: int, split: str, size: int) -> None:
        check_split(split)
        self.labels = labels
        self._seed, self._split, self._size = seed, split, size
        self._patients: NDArray[np.int64] = draw_patients(seed, split, len(labels))
        self.ids: Sequence[str] = study_ids(split, len(labels))
        self.groups: Sequence[str] = patient_names(split, self._patients)
        self.texts: Sequence[str | None] = tuple(
            self._note(
                index,
                draw_person(self._stream(Purpose.PERSON, int(self._patients[index]))),
                self._stream(Purpose.NOTE, index),
            )
            for index in range(len(labels))
        )

    @abstractmethod
    def _visible(self, index: int) -> NDArray[np.bool_]:
        """Returns which lesions of a study are drawn, one value for each drawer."""

    @abstractmethod
    def _findings(self, index: int, lesion: int) -> Sequence[str]:
        """Returns what a lesion of a study means: the names of the classes that it makes positive."""

    @abstractmethod
    def _note(self, index: int, person: Person, generator: np.random.Generator) -> str:
        """Writes the note of a study."""

    def __len__(self) -> int:
        """Returns the number of studies."""
        return len(self.labels)

    def __getitem__(self, index: int) -> Study:
        """Draws a study; the same index always gives the same bits."""
        index = checked_index(index, len(self))
        radiograph = draw_radiograph(
            self._visible(index),
            patient=self._stream(Purpose.ANATOMY, int(self._patients[index])),
            acquisition=self._stream(Purpose.ACQUISITION, index),
            lesions=[self._stream(Purpose.LESION, index, lesion) for lesion in range(len(self.drawers))],
            size=self._size,
            drawers=self.drawers,
        )
        boxes = tuple(
            Box(finding, *box)
            for lesion, places in enumerate(radiograph.boxes)
            for box in places
            for finding in self._findings(index, lesion)
        )
        return Study(
            id=self.ids[index],
            group=self.groups[index],
            image=radiograph.image,
            text=self.texts[index],
            labels=self.labels[index].copy(),
            boxes=boxes,
        )

    def _stream(self, purpose: Purpose, *index: int) -> np.random.Generator:
        return stream(self._seed, self._split, purpose, *index)
