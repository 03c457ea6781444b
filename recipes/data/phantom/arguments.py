"""Checks of the drawn sets: sizes that a caller asks for, and places in a split."""

import operator


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
            raise ValueError(f"{name}: expected a whole number of at least {smallest}, got {value!r}.")


def checked_index(index: int, count: int) -> int:
    """Returns the place of a study among ``count``, from 0; negative ones count from the end.

    Raises:
        IndexError: If there is no such study.
    """
    index = operator.index(index)
    if not -count <= index < count:
        raise IndexError(f"index {index} is out of range for {count} studies.")
    return index % count
