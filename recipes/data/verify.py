"""Reads every image of a data set once, so that one that cannot be read is known before training."""

from collections.abc import Iterable
from typing import Any

from recipes.data.arguments import remedy
from recipes.data.image_files import problems, some_of
from recipes.data.pairs import PairStream
from recipes.data.studies import images_present


def verify_images(splits: Iterable[tuple[str, Any]], data: str) -> int:
    """Reads every image; streams are left out, for what they cannot read they skip.

    Args:
        splits: Name and split.
        data: What they come from, for the message.

    Returns:
        How many images were read.

    Raises:
        ValueError: Naming up to five images that cannot be read, and what is wrong with the first.
    """
    count, bad = 0, []
    for _, split in splits:
        if isinstance(split, PairStream):
            continue
        wrong = problems(len(split), lambda row, split=split: _problem(split, row))
        bad += [(split.ids[row], reason) for row, reason in wrong.items()]
        count += int(images_present(split).sum())
    if bad:
        names = [name for name, _ in bad]
        raise ValueError(
            f"{data}: {len(bad)} of {count} images cannot be read: {some_of(names, range(len(names)))} ({bad[0][1]}). "
            "Replace them" + remedy(", or leave such rows out ({on_bad_image=skip})") + "."
        )
    return count


def _problem(split: Any, row: int) -> str | None:
    try:
        split[row]
    except ValueError as error:
        return str(error)
    return None
