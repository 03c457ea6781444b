"""The harder phantom: drawn radiographs with notes that name the place that counts."""

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
    PLACES,
    WIDESPREAD,
    diseases_of,
    draw_contexts,
    draw_named,
    draw_patterns,
    labels_of,
)
from recipes.data.phantom.hard.lesions import DRAWERS
from recipes.data.phantom.hard.notes import write_note
from recipes.data.studies import StudySource


class PhantomHardSplit(RadiographSplit):
    """One split of the harder phantom.

    Args:
        patterns: Shape ``(N, Z)``, latent: the pattern at each place.
        contexts: Shape ``(N,)``, latent: the circumstance that the note tells.
        named: Shape ``(N,)``, latent: the place that the note names.
        seed: See :class:`RadiographSplit`.
        split: See there.
        size: See there.

    Raises:
        ValueError: If the shapes do not fit or the split is unknown.
    """

    drawers = DRAWERS

    def __init__(
        self,
        patterns: NDArray[np.int64],
        contexts: NDArray[np.int64],
        named: NDArray[np.int64],
        *,
        seed: int,
        split: str,
        size: int,
    ) -> None:
        count = (len(patterns),)
        if patterns.shape[1:] != (len(PLACES),) or contexts.shape != count or named.shape != count:
            raise ValueError(
                f"patterns, contexts and named: expected shapes (N, {len(PLACES)}), (N,) and (N,), one row per study, "
                f"got {patterns.shape}, {contexts.shape} and {named.shape}."
            )
        self.patterns, self.contexts, self.named = patterns, contexts, named
        super().__init__(labels_of(patterns, contexts, named), seed=seed, split=split, size=size)

    def _visible(self, index: int) -> NDArray[np.bool_]:
        return (self.patterns[index][:, None] == np.arange(len(PATTERNS))).ravel()

    def _findings(self, index: int, lesion: int) -> tuple[str, ...]:
        place, pattern = divmod(lesion, len(PATTERNS))
        widespread = (self.patterns[index] == pattern).sum() >= WIDESPREAD
        classes = [pattern] if widespread else []
        if place == self.named[index]:
            classes += diseases_of(pattern, int(self.contexts[index]))
        return tuple(CLASSES[number] for number in classes)

    def _note(self, index: int, person: Person, generator: np.random.Generator) -> str:
        return write_note(int(self.contexts[index]), int(self.named[index]), person, generator)


def phantom_hard_source(
    *, seed: int = 0, train: int = 1600, val: int = 400, test: int = 600, size: int = 96, num_contexts: int = 2
) -> StudySource:
    """Builds the harder phantom: multi-label, 12 classes, one drawn image and one note per study.

    Args:
        seed: Names the data set; each seed is another one.
        train: Number of training studies.
        val: Number of validation studies.
        test: Number of test studies.
        size: Side of the square images in pixels, at least 64.
        num_contexts: Circumstances, ``C``, from 1 to 4: a pattern means other diseases under each.

    Raises:
        ValueError: If an argument is not a whole number, too small or too large.

    Example:
        >>> source = phantom_hard_source(train=8, val=4, test=4)
        >>> source.train[3].image.shape, source.train.labels.shape
        ((96, 96), (8, 12))
    """
    counts = {"train": train, "val": val, "test": test}
    check_sizes(smallest_side=MIN_SIZE, seed=seed, size=size, **counts)
    if isinstance(num_contexts, bool) or num_contexts not in range(1, MAX_CONTEXTS + 1):
        raise ValueError(
            f"{argument('num_contexts')}: expected a whole number from 1 to {MAX_CONTEXTS}, got {num_contexts!r}."
        )
    splits = {
        split: PhantomHardSplit(
            draw_patterns(seed, split, count),
            draw_contexts(seed, split, count, int(num_contexts)),
            draw_named(seed, split, count),
            seed=seed,
            split=split,
            size=size,
        )
        for split, count in counts.items()
    }
    best = best_aurocs(int(num_contexts))
    note = (
        "Phantom, harder edition: drawn, not real, radiographs. The note names the place that counts and tells what a "
        f"pattern means there: the best macro AUROC is {best.image:.3f} from the image alone, {best.note:.3f} from the "
        f"note alone, {best.without_places:.3f} from both without knowing what lies where, and 1 from both."
    )
    return StudySource(name="phantom-hard", task="multi-label", classes=CLASSES, notes=(note,), **splits)
