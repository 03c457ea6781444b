"""Reads every image of a data set once, so that one that cannot be read is known before training."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from recipes.data.arguments import argument, remedy
from recipes.data.image_files import problems, some_of
from recipes.data.images.unreadable import UnreadableImageError
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


@contextmanager
def bad_images_named() -> Iterator[None]:
    """Says of an image that a training cannot read what its command offers.

    Raises:
        ValueError: For an image that the block could not read, with the options that leave it out or list all of them.
    """
    try:
        yield
    except UnreadableImageError as error:
        skip, verify = argument("on_bad_image", "skip"), argument("verify_images", "True")
        raise ValueError(
            f"{error}. Replace it, or leave such rows out ({skip}); {verify} lists all of them before the training."
        ) from error


def _problem(split: Any, row: int) -> str | None:
    try:
        split[row]
    except ValueError as error:
        return str(error)
    return None
