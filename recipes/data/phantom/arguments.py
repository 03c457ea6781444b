"""What the drawn sets have in common: checks of their arguments, and the names of studies and patients."""

import operator
from collections.abc import Iterable

from recipes.data.arguments import argument
from recipes.data.studies import SPLITS


def check_sizes(*, smallest_side: int, seed: int, size: int, **counts: int) -> None:
    """Refuses a seed, a side or a number of studies that cannot be drawn.

    Args:
        smallest_side: Smallest side in pixels.
        seed: Not negative.
        size: Side of the images in pixels.
        **counts: Number of studies of each split, at least 1.

    Raises:
        ValueError: Naming the argument, the smallest value and what came.
    """
    expected = {
        "seed": (seed, 0),
        **{name: (count, 1) for name, count in counts.items()},
        "size": (size, smallest_side),
    }
    for name, (value, smallest) in expected.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < smallest:
            raise ValueError(f"{argument(name)}: expected a whole number of at least {smallest}, got {value!r}.")


def check_split(split: str) -> None:
    """Refuses a name that is none of the splits'.

    Raises:
        ValueError: Naming the splits.
    """
    if split not in SPLITS:
        raise ValueError(f"split: expected one of {', '.join(SPLITS)}, got {split!r}.")


def study_ids(split: str, count: int) -> tuple[str, ...]:
    """Returns the ids of the studies of a split, in order."""
    return tuple(f"{split}-{index:05d}" for index in range(count))


def patient_names(split: str, patients: Iterable[int]) -> tuple[str, ...]:
    """Returns the name of each study's patient from the patient's number."""
    return tuple(f"{split}-patient-{patient:05d}" for patient in patients)


def checked_index(index: int, count: int) -> int:
    """Returns the place of a study among ``count``, from 0; negative ones count from the end.

    Raises:
        IndexError: If there is no such study.
    """
    index = operator.index(index)
    if not -count <= index < count:
        raise IndexError(f"index {index} is out of range for {count} studies.")
    return index % count
