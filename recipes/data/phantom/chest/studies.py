"""The phantom data set: drawn radiographs with notes, for which the best possible score is known."""

import numpy as np
from numpy.typing import NDArray

from recipes.data.phantom.arguments import check_sizes
from recipes.data.phantom.chest.findings import CLASSES, PATTERNS, labels_of
from recipes.data.phantom.chest.reports import Person, write_note
from recipes.data.phantom.chest.split import RadiographSplit
from recipes.data.phantom.streams import draw_causes, draw_visible
from recipes.data.studies import StudySource

MIN_SIZE = 64
"""Below this many pixels the nodules and the pleura's line are no longer drawn faithfully."""

_NOTE = (
    "Phantom: drawn, not real, radiographs. The image tells whether a pattern is present, the note which of "
    "its two causes holds: the best macro AUROC is 5/6 = 0.833 from either alone and 1 from both."
)


class PhantomSplit(RadiographSplit):
    """One split of the phantom data set.

    Args:
        visible: Shape ``(N, P)``, latent: whether each pattern is drawn.
        causes: Shape ``(N, P)``, latent, 0 or 1: the cause that the note tells.
        seed: See :class:`RadiographSplit`.
        split: See there.
        size: See there.

    Raises:
        ValueError: If the shapes are not both ``(N, P)`` or the split is unknown.
    """

    def __init__(
        self, visible: NDArray[np.bool_], causes: NDArray[np.int64], *, seed: int, split: str, size: int
    ) -> None:
        if visible.shape != causes.shape or visible.shape[1:] != (len(PATTERNS),):
            raise ValueError(
                f"visible and causes: expected both of shape (N, {len(PATTERNS)}), one row per study, "
                f"got {visible.shape} and {causes.shape}."
            )
        self.visible, self.causes = visible, causes
        super().__init__(labels_of(visible, causes), seed=seed, split=split, size=size)

    def _visible(self, index: int) -> NDArray[np.bool_]:
        return self.visible[index]

    def _findings(self, index: int, lesion: int) -> tuple[str, ...]:
        return (PATTERNS[lesion].diagnoses[int(self.causes[index, lesion])],)

    def _note(self, index: int, person: Person, generator: np.random.Generator) -> str:
        return write_note(self.causes[index], person, generator)


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
