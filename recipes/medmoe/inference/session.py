"""What every stage asks of a model that embeds images and texts: a pretrained run, or another model beside it.

:class:`ModelSession` is the protocol of the commands. A command takes a model in one line,

    session = open_session(run, checkpoint, choice)

(:func:`recipes.medmoe.inference.opening.open_session`), where ``choice`` is a
:class:`~recipes.medmoe.models.choice.ModelChoice`, an argument of the command's ``main`` (``baseline: OtherModel =
RUN_ITSELF``, which adds ``--model``, ``--text-tower``, ``--tokenizer`` and ``--data-of``), and uses what is below and
nothing else: ``session.texts(texts).embedding``, ``session.images([session.fit(image)])``,
``session.image_batches(split)``, ``session.scale``. What only a run has is behind ``session.is_run``; experts and a
router are behind ``session.route_on``, which is ``"none"`` for a model without experts, pretrained here or released.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from recipes.data.decoded_cache import DecodedImages
from recipes.data.pairs import PairSource
from recipes.data.studies import Box, Study, StudySplit
from recipes.medmoe.data.tokens import Tokens
from recipes.medmoe.features import ImageFeatures, TextFeatures

RoutedOn = Literal["image", "text", "label", "none"]


class ModelSession(ABC):
    """A model in eval mode with what belongs to it. Nothing here keeps a gradient.

    Attributes:
        run: Folder of the run, or of the results of another model.
        device: Where it computes.
    """

    run: Path
    device: torch.device

    @property
    @abstractmethod
    def name(self) -> str:
        """Returns what results call the model."""

    @property
    def is_run(self) -> bool:
        """Returns whether it is a pretrained run, which has stages of its own; not so by default."""
        return False

    @property
    def notes(self) -> tuple[str, ...]:
        """Returns what a reader of the model's results should know."""
        return ()

    @property
    @abstractmethod
    def route_on(self) -> RoutedOn:
        """Returns what chooses the expert of an image; ``"none"`` where there are no experts."""

    @property
    @abstractmethod
    def scale(self) -> float:
        """Returns what the model multiplies cosines by before a softmax."""

    @property
    @abstractmethod
    def batch_size(self) -> int:
        """Returns how many images are encoded at once."""

    @property
    @abstractmethod
    def modalities(self) -> tuple[str, ...]:
        """Returns the names of the experts' modalities: expert k is meant for the k-th."""

    @property
    @abstractmethod
    def data(self) -> str:
        """Returns what the session's own data are: ``"phantom"`` or a path, as for ``pretrain --data``.

        Raises:
            ValueError: Of a model without data of its own.
        """

    @property
    @abstractmethod
    def force_dicom(self) -> bool:
        """Returns whether DICOM files without preamble are read."""

    @abstractmethod
    def source(self) -> PairSource:
        """Opens the session's own data.

        Raises:
            ValueError: If there are none, or they were changed since the run was trained.
        """

    @abstractmethod
    def weights_checksum(self, checkpoint: str) -> str:
        """Returns what changes whenever the weights do."""

    @abstractmethod
    def fit(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Fits any image to the square that the model sees, ``(S, S)`` or ``(S, S, 3)``."""

    @abstractmethod
    def boxes(self, study: Study) -> tuple[Box, ...]:
        """Returns a study's boxes in pixels of its fitted square."""

    @abstractmethod
    def images(self, pictures: Sequence[NDArray[np.uint8]]) -> ImageFeatures:
        """Encodes images that :meth:`fit` fitted."""

    @abstractmethod
    def tokens(self, texts: Sequence[str]) -> Tokens:
        """Tokenizes texts, padded as the model wants them."""

    @abstractmethod
    def words(self, text: str) -> list[str]:
        """Returns the words of a text that the model reads, those cut off left out."""

    @abstractmethod
    def encode_texts(self, tokens: Tokens) -> TextFeatures:
        """Encodes one batch of tokenized texts."""

    @torch.no_grad()
    def texts(self, texts: Sequence[str], *, batch_size: int = 64) -> TextFeatures:
        """Encodes texts, padded to the longest of all (or to the model's own length)."""
        tokens = self.tokens(texts)
        parts = [
            self.encode_texts(tokens.rows(slice(start, start + batch_size)))
            for start in range(0, len(texts), batch_size)
        ]
        longest = max(part.mask.shape[1] for part in parts)
        return TextFeatures(
            torch.cat([_padded(part.words, longest) for part in parts]),
            torch.cat([_padded(part.mask, longest) for part in parts]),
            torch.cat([part.embedding for part in parts]),
            torch.cat([part.pooled for part in parts]),
        )

    def image_batches(
        self, split: StudySplit, *, title: str | None = None
    ) -> Iterator[tuple[list[int], ImageFeatures]]:
        """Encodes a split batch by batch, in its order.

        Args:
            split: The studies.
            title: Of a progress bar; none by default.
        """
        size, stored = self.batch_size, self.stored(split)
        for start in tqdm(range(0, len(split), size), desc=title, disable=title is None, leave=False):
            rows = list(range(start, min(start + size, len(split))))
            yield rows, self.images([self.picture(split, row, stored) for row in rows])

    def stored(self, split: StudySplit) -> DecodedImages | None:
        """Returns the cache of a split's decoded images, fitted as :meth:`fit` does; none by default."""
        return None

    def picture(self, split: StudySplit, index: int, stored: DecodedImages | None = None) -> NDArray[np.uint8]:
        """Returns a study's image fitted to the encoder's square, from the cache of decoded images if it is there."""
        image = None if stored is None else stored(index)
        return self.fit(split[index].image) if image is None else image


def _padded(rows: Tensor, length: int) -> Tensor:
    """Appends zeros (False) to dimension 1."""
    missing = rows.new_zeros(rows.shape[0], length - rows.shape[1], *rows.shape[2:])
    return torch.cat([rows, missing], dim=1)
