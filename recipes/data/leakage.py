"""Looks for studies of one split that another one holds too: the same patient, the same pixels, or nearly the same."""

from collections.abc import Iterator, Sequence
from itertools import combinations, product
from typing import Literal, NamedTuple

from recipes.data.prints import SIMILARITY, Prints, check_similarity, equal_pairs, read_prints, twins
from recipes.data.studies import StudySource, StudySplit

LEAKAGE = "leakage.json"
"""What ``python -m recipes.data check --run RUN`` notes in a run, for its model card."""


class Leak(NamedTuple):
    """Two studies in different splits that should not be apart.

    Attributes:
        kind: ``patient``, ``pixels`` (equal after decoding) or ``twins`` (thumbnails that correlate).
        first_split: Split of one study.
        first: Its id.
        second_split: Split of the other.
        second: Its id.
        similarity: Correlation of the thumbnails; 1 for equal pixels, ``None`` for a patient.
        group: The patient, for that kind.
    """

    kind: Literal["patient", "pixels", "twins"]
    first_split: str
    first: str
    second_split: str
    second: str
    similarity: float | None = None
    group: str | None = None


def find_leaks(
    source: StudySource, *, similarity: float = SIMILARITY, workers: int = 0, progress: bool = False
) -> list[Leak]:
    """Lists pairs of studies that are in different splits and of one patient, of equal pixels or twins.

    Equal pixels are found by a digest of the decoded image, so a copy in another lossless file counts. Twins are found
    by the correlation of 32 by 32 grey thumbnails, which brightness, contrast, size and compression hardly change.
    A patient who crosses splits is listed once for each pair of splits; an image with equal ones once for each other
    split; of twins, up to five for an image.

    Args:
        source: The data set.
        similarity: Correlation from which on images are twins, in ``(0, 1]``.
        workers: Processes that read images; 0 reads in this one.
        progress: Whether progress bars are shown.

    Raises:
        ValueError: If ``similarity`` is out of its range, or an image cannot be read; the message names it.
    """
    check_similarity(similarity)
    splits = dict(source.splits())
    prints = _prints_of(splits, workers, progress)
    leaks = list(_patients(splits))
    for first, second in combinations(splits, 2):
        leaks += _leaks(splits, prints, first, second, similarity)
    return leaks


def find_shared(
    source: StudySource,
    other: StudySource,
    *,
    similarity: float = SIMILARITY,
    workers: int = 0,
    progress: bool = False,
) -> list[Leak]:
    """Lists pairs of images of two data sets that have equal pixels or are twins, as :func:`find_leaks` does.

    Patients are not compared: their names mean nothing outside their own set.

    Args:
        source: A data set.
        other: Another one.
        similarity: Correlation from which on images are twins, in ``(0, 1]``.
        workers: Processes that read images; 0 reads in this one.
        progress: Whether progress bars are shown.

    Returns:
        Leaks whose splits are called ``SET SPLIT``; of sets of one name, ``first SET SPLIT`` and ``second SET SPLIT``.

    Raises:
        ValueError: As :func:`find_leaks`.
    """
    check_similarity(similarity)
    titles = (source.name, other.name)
    if source.name == other.name:
        titles = (f"first {source.name}", f"second {other.name}")
    own, others = (
        {f"{title} {name}": split for name, split in one.splits()}
        for title, one in zip(titles, (source, other), strict=True)
    )
    splits = own | others
    prints = _prints_of(splits, workers, progress)
    return [
        leak for first, second in product(own, others) for leak in _leaks(splits, prints, first, second, similarity)
    ]


def _prints_of(splits: dict[str, StudySplit], workers: int, progress: bool) -> dict[str, Prints]:
    return {
        name: read_prints(split, workers=workers, title=name if progress else None) for name, split in splits.items()
    }


def _leaks(
    splits: dict[str, StudySplit], prints: dict[str, Prints], first: str, second: str, similarity: float
) -> Iterator[Leak]:
    """Yields the equal images of two splits, then the twins."""
    one, other = splits[first].ids, splits[second].ids
    for a, b in equal_pairs(prints[first], prints[second]):
        yield Leak("pixels", first, one[a], second, other[b], 1.0)
    for twin in twins(prints[first], prints[second], similarity):
        yield Leak("twins", first, one[twin.first], second, other[twin.second], twin.similarity)


def _patients(splits: dict[str, StudySplit]) -> Iterator[Leak]:
    """Yields the first study of each patient in each of two splits."""
    first: dict[str, dict[str, int]] = {name: {} for name in splits}
    for name, split in splits.items():
        for row, group in enumerate(split.groups):
            first[name].setdefault(group, row)
    for one, other in combinations(splits, 2):
        for group, row in first[one].items():
            if group in first[other]:
                ids = splits[one].ids[row], splits[other].ids[first[other][group]]
                yield Leak("patient", one, ids[0], other, ids[1], group=group)


def leak_lines(leaks: Sequence[Leak], most: int, *, patients: bool = True) -> list[str]:
    """Describes leaks in words, up to ``most`` of each kind, and counts them.

    Args:
        leaks: Of :func:`find_leaks` or :func:`find_shared`.
        most: Lines for each kind.
        patients: Whether patients were compared.
    """
    titles = {"patient": "patients in two splits"} if patients else {}
    titles |= {"pixels": "pairs of equal pixels", "twins": "pairs of nearly equal images"}
    lines = []
    for kind, title in titles.items():
        own = [leak for leak in leaks if leak.kind == kind]
        lines.append(f"{title}: {len(own)}")
        for leak in own[:most]:
            what = {"patient": f"patient {leak.group}: ", "pixels": "", "twins": f"{leak.similarity or 0:.4f}: "}[kind]
            lines.append(f"  {what}{leak.first_split} {leak.first} and {leak.second_split} {leak.second}")
        if len(own) > most:
            lines.append(f"  and {len(own) - most} more")
    return lines
