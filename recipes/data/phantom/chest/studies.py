"""The phantom data set: drawn radiographs with notes, for which the best possible score is known."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from recipes.data.phantom.arguments import check_sizes, check_split, checked_index, patient_names, study_ids
from recipes.data.phantom.chest.findings import CLASSES, PATTERNS, labels_of
from recipes.data.phantom.chest.radiograph import draw_radiograph
from recipes.data.phantom.chest.reports import draw_person, write_note
from recipes.data.phantom.streams import Purpose, draw_causes, draw_patients, draw_visible, stream
from recipes.data.studies import Box, Study, StudySource

MIN_SIZE = 64
"""Below this many pixels the nodules and the pleura's line are no longer drawn faithfully."""

_NOTE = (
    "Phantom: drawn, not real, radiographs. The image tells whether a pattern is present, the note which of "
    "its two causes holds: the best macro AUROC is 5/6 = 0.833 from either alone and 1 from both."
)


class PhantomSplit:
    """One split of the phantom data set; images are drawn when asked for.

    Attributes:
        labels: Shape ``(N, 2P)``, 0 or 1.
        ids: Id of each study.
        groups: Patient of each study.
        texts: Note of each study.
        visible: Shape ``(N, P)``, latent: whether each pattern is drawn.
        causes: Shape ``(N, P)``, latent: the cause that the note tells.
    """

    def __init__(
        self, visible: NDArray[np.bool_], causes: NDArray[np.int64], *, seed: int, split: str, size: int
    ) -> None:
        """Keeps the latents and writes the notes.

        Args:
            visible: Shape ``(N, P)``.
            causes: Shape ``(N, P)``, 0 or 1.
            seed: Names the streams, with ``split``.
            split: ``"train"``, ``"val"`` or ``"test"``.
            size: Side of the images in pixels.

        Raises:
            ValueError: If the shapes are not both ``(N, P)`` or the split is unknown.
        """
        check_split(split)
        if visible.shape != causes.shape or visible.shape[1:] != (len(PATTERNS),):
            raise ValueError(
                f"visible and causes: expected both of shape (N, {len(PATTERNS)}), one row per study, "
                f"got {visible.shape} and {causes.shape}."
            )
        self.visible, self.causes = visible, causes
        self.labels: NDArray[np.float32] = labels_of(visible, causes)
        self._seed, self._split, self._size = seed, split, size
        self._patients: NDArray[np.int64] = draw_patients(seed, split, len(visible))
        self.ids: Sequence[str] = study_ids(split, len(visible))
        self.groups: Sequence[str] = patient_names(split, self._patients)
        self.texts: Sequence[str | None] = tuple(self._write(index) for index in range(len(visible)))

    def __len__(self) -> int:
        """Returns the number of studies."""
        return len(self.labels)

    def __getitem__(self, index: int) -> Study:
        """Draws a study; the same index always gives the same bits."""
        index = checked_index(index, len(self))
        radiograph = draw_radiograph(
            self.visible[index],
            patient=self._stream(Purpose.ANATOMY, int(self._patients[index])),
            acquisition=self._stream(Purpose.ACQUISITION, index),
            lesions=[self._stream(Purpose.LESION, index, pattern) for pattern in range(len(PATTERNS))],
            size=self._size,
        )
        boxes = tuple(
            Box(pattern.diagnoses[int(cause)], *box)
            for pattern, cause, places in zip(PATTERNS, self.causes[index], radiograph.boxes, strict=True)
            for box in places
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

    def _write(self, index: int) -> str:
        person = draw_person(self._stream(Purpose.PERSON, int(self._patients[index])))
        return write_note(self.causes[index], person, self._stream(Purpose.NOTE, index))


def phantom_source(*, seed: int = 0, train: int = 2000, val: int = 400, test: int = 600, size: int = 96) -> StudySource:
    """Builds the phantom data set: multi-label, 10 classes, one drawn image and one note per study.

    Args:
        seed: Names the data set; each seed is another one.
        train: Number of training studies.
        val: Number of validation studies.
        test: Number of test studies.
        size: Side of the square images in pixels, at least 64.

    Raises:
        ValueError: If an argument is not a whole number or is too small.

    Example:
        >>> source = phantom_source(train=8, val=4, test=4)
        >>> source.train[3].image.shape, source.train.labels.shape
        ((96, 96), (8, 10))
    """
    counts = {"train": train, "val": val, "test": test}
    check_sizes(smallest_side=MIN_SIZE, seed=seed, size=size, **counts)
    splits = {
        split: PhantomSplit(
            draw_visible(seed, split, count),
            draw_causes(seed, split, count),
            seed=seed,
            split=split,
            size=size,
        )
        for split, count in counts.items()
    }
    return StudySource(name="phantom", task="multi-label", classes=CLASSES, notes=(_NOTE,), **splits)
