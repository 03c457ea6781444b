"""Studies that lack the image or the text: null streams, modality dropout, and scores from one modality alone.

Shape letters: B studies, N tokens of a stream, D the common width d.
"""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from recipes.data.studies import StudySplit, images_present

Modality = Literal["image", "text"]


class ModalityDropout(NamedTuple):
    """Leaves out the image or the text of some studies, never both.

    What is left out depends on seed, epoch and study alone, so it is the same whatever the order, the number of
    workers and ranks, or a resumption in between.

    Attributes:
        image: Share of the studies with both that are shown without the image.
        text: Share that is shown without the text.
        seed: Names the random numbers.
    """

    image: float = 0.0
    text: float = 0.0
    seed: int = 0

    def left_out(self, epoch: int, index: int) -> Modality | None:
        """Returns which modality of a study an epoch leaves out, ``None`` for neither."""
        # A stream of its own: the augmentation's begins with the same three numbers.
        draw = np.random.default_rng((self.seed, epoch, index, 1)).random()
        if draw < self.image:
            return "image"
        return "text" if draw < self.image + self.text else None


ONLY: dict[Modality, ModalityDropout] = {"image": ModalityDropout(text=1.0), "text": ModalityDropout(image=1.0)}
"""What leaves each study with one modality."""


def with_null(null: Tensor, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Puts a stream's null token before its tokens; it is real exactly where no other token is.

    Args:
        null: ``(1, 1, D)``, learned.
        tokens: ``(B, N, D)``.
        mask: ``(B, N)``, True for real tokens.

    Returns:
        Tokens ``(B, 1 + N, D)`` and their mask.
    """
    missing = ~mask.any(1, keepdim=True)
    first = null.expand(tokens.shape[0], 1, -1).to(tokens.dtype)
    return torch.cat([first, tokens], dim=1), torch.cat([missing, mask], dim=1)


def fill_missing(images: Tensor, present: Tensor) -> Tensor:
    """Replaces each missing image by a present one of the batch, or by zeros where there is none.

    What the encoder makes of them is not read. Copies, and no zeros, because batch norm takes its statistics from all
    images of a batch; and no indexing by the mask, whose number of rows the host would have to wait for.

    Args:
        images: ``(B, ...)``.
        present: ``(B,)``, False where the image is missing and its slot holds anything.
    """
    rows = torch.arange(present.shape[0], device=present.device)
    present_first = torch.argsort(present.int(), descending=True, stable=True)
    substitutes = present_first[rows % present.sum().clamp(min=1)]
    filled = images[torch.where(present, rows, substitutes)]
    return torch.where(present.any(), filled, 0)


def check_rates(image: float, text: float, *, reads_text: bool) -> None:
    """Refuses rates of modality dropout that add up to more than 1, or leave a model without any input.

    Args:
        image: Share of studies shown without the image.
        text: Share shown without the text.
        reads_text: Whether the model reads texts.

    Raises:
        ValueError: Naming the options.
    """
    if image + text > 1:
        raise ValueError(
            "drop_image and drop_text (--drop-image, --drop-text) must add up to at most 1, since no study loses both, "
            f"got {image} and {text}."
        )
    if (image or text) and not reads_text:
        raise ValueError(
            f"drop_image and drop_text (--drop-image, --drop-text) need a model that reads images and texts, got "
            f"{image} and {text} for one that reads no text: leave them out, or name the texts (--text-column)."
        )


def check_something_is_read(
    data: str,
    splits: Iterable[tuple[str, StudySplit]],
    texts: Mapping[str, Sequence[str | None]],
    *,
    reads_text: bool,
) -> None:
    """Refuses studies without an image of whose text nothing is read either.

    Args:
        data: What they come from, for the message.
        splits: Name and split.
        texts: The texts that the model may read, by split.
        reads_text: Whether it reads any.

    Raises:
        ValueError: Naming the number of studies and the first of them.
    """
    for name, split in splits:
        missing = np.flatnonzero(~images_present(split))
        lacking = [row for row in missing if not (reads_text and (texts[name][row] or "").strip())]
        if lacking:
            raise ValueError(
                f"{data}: {len(lacking)} studies of {name} have no image and no text that is read, such as "
                f"{split.ids[lacking[0]]!r}: give them one (--text-column, --text-section, a --variant that reads "
                "texts), or remove them."
            )


def warn_of_missing_images(split: StudySplit, run: Path, drop_image: float) -> None:
    """Warns of studies without an image before a run predicts them that was trained without dropping images.

    Args:
        split: The studies.
        run: Folder of the run.
        drop_image: The rate with which it was trained.

    Warns:
        UserWarning: With their number.
    """
    missing = int((~images_present(split)).sum())
    if missing and not drop_image:
        warnings.warn(
            f"{missing} of {len(split)} studies have no image, and {run} was trained without --drop-image: unless "
            "training studies lacked images too, it has not learned to do without",
            stacklevel=3,
        )
