"""The harder phantom: drawn radiographs whose patterns mean what the note's circumstance of that side makes of them."""

import numpy as np
from numpy.typing import NDArray

from recipes.data.arguments import argument
from recipes.data.phantom.arguments import check_sizes
from recipes.data.phantom.chest.reports import Person
from recipes.data.phantom.chest.split import RadiographSplit
from recipes.data.phantom.chest.studies import MIN_SIZE
from recipes.data.phantom.hard.bounds import best_aurocs
from recipes.data.phantom.hard.findings import (
    CLASSES,
    MAX_CONTEXTS,
    PATTERNS,
    class_of,
    draw_contexts,
    draw_visible,
    labels_of,
)
from recipes.data.phantom.hard.lesions import DRAWERS
from recipes.data.phantom.hard.notes import write_note
from recipes.data.studies import StudySource


class PhantomHardSplit(RadiographSplit):
    """One split of the harder phantom.

    Args:
        visible: Shape ``(N, P, 2)``, latent: whether each pattern is drawn on each side.
        contexts: Shape ``(N, 2)``, latent: the circumstance of each side, which the note tells.
        seed: See :class:`RadiographSplit`.
        split: See there.
        size: See there.

    Raises:
        ValueError: If the shapes do not fit or the split is unknown.
    """

    drawers = DRAWERS

    def __init__(
        self, visible: NDArray[np.bool_], contexts: NDArray[np.int64], *, seed: int, split: str, size: int
    ) -> None:
        if visible.shape[1:] != (len(PATTERNS), 2) or contexts.shape != (len(visible), 2):
            raise ValueError(
                f"visible and contexts: expected shapes (N, {len(PATTERNS)}, 2) and (N, 2), one row per study, got "
                f"{visible.shape} and {contexts.shape}."
            )
        self.visible, self.contexts = visible, contexts
        super().__init__(labels_of(visible, contexts), seed=seed, split=split, size=size)

    def _visible(self, index: int) -> NDArray[np.bool_]:
        return self.visible[index].ravel()

    def _finding(self, index: int, lesion: int) -> str:
        pattern, side = divmod(lesion, 2)
        return CLASSES[class_of(pattern, int(self.contexts[index, side]))]

    def _note(self, index: int, person: Person, generator: np.random.Generator) -> str:
        return write_note(self.contexts[index], person, generator)


def phantom_hard_source(
    *, seed: int = 0, train: int = 1600, val: int = 400, test: int = 600, size: int = 96, num_contexts: int = 4
) -> StudySource:
    """Builds the harder phantom: multi-label, 12 classes, one drawn image and one note per study.

    Args:
        seed: Names the data set; each seed is another one.
        train: Number of training studies.
        val: Number of validation studies.
        test: Number of test studies.
        size: Side of the square images in pixels, at least 64.
        num_contexts: Circumstances, ``C``: each pattern means as many classes, and each class has ``C / 2`` looks.
            Even, 2 to 8.

    Raises:
        ValueError: If an argument is not a whole number, too small or too large.

    Example:
        >>> source = phantom_hard_source(train=8, val=4, test=4)
        >>> source.train[3].image.shape, source.train.labels.shape
        ((96, 96), (8, 12))
    """
    counts = {"train": train, "val": val, "test": test}
    check_sizes(smallest_side=MIN_SIZE, seed=seed, size=size, **counts)
    if isinstance(num_contexts, bool) or num_contexts not in range(2, MAX_CONTEXTS + 1, 2):
        raise ValueError(
            f"{argument('num_contexts')}: expected an even number from 2 to {MAX_CONTEXTS}, got {num_contexts!r}."
        )
    splits = {
        split: PhantomHardSplit(
            draw_visible(seed, split, count),
            draw_contexts(seed, split, count, num_contexts),
            seed=seed,
            split=split,
            size=size,
        )
        for split, count in counts.items()
    }
    best = best_aurocs(num_contexts)
    note = (
        "Phantom, harder edition: drawn, not real, radiographs. What a pattern means depends on what the note tells "
        f"of its side: the best macro AUROC is {best.image:.3f} from the image alone, {best.note:.3f} from the note "
        f"alone, {best.without_sides:.3f} from both without knowing which belongs to which side, and 1 from both."
    )
    return StudySource(name="phantom-hard", task="multi-label", classes=CLASSES, notes=(note,), **splits)
