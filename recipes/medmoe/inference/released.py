"""A released model with the interface of a run's session: no experts, data of another run."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moekit.contrastive import attention_maps, local_scores
from recipes.data.pairs import PairSource
from recipes.data.studies import Box, Study
from recipes.medmoe.config import Config
from recipes.medmoe.data.sources import build_source
from recipes.medmoe.data.tokens import Tokens
from recipes.medmoe.features import ImageFeatures, TextFeatures
from recipes.medmoe.inference.session import ModelSession, RoutedOn
from recipes.medmoe.models.adapter import Adapter, cosine_maps
from recipes.medmoe.models.choice import ModelChoice
from recipes.medmoe.models.load import load_adapter
from recipes.shared.fingerprint import check_unchanged
from recipes.shared.runs import run_device
from recipes.shared.settings import read_settings

BATCH_SIZE = 32
"""Images encoded at once."""


@dataclass(frozen=True)
class ReleasedSession(ModelSession):
    """A released model, ready to embed. Nothing here keeps a gradient.

    Attributes:
        run: Folder of its results.
        choice: What it was loaded from.
        model: The adapter.
        device: Where it computes.
        config: Settings of the run whose data are used; ``None`` where there is none.
    """

    run: Path
    choice: ModelChoice
    model: Adapter
    device: torch.device
    config: Config | None = field(default=None)

    @classmethod
    def open(cls, run: Path, choice: ModelChoice) -> "ReleasedSession":
        """Loads a model, onto a GPU where there is one.

        Raises:
            ValueError: If there is no such model, its weights do not fit, or ``data_of`` is no run.
            RuntimeError: If something that a hub has cannot be loaded.
        """
        config = None if choice.data_of is None else read_settings(Config, choice.data_of)
        device = run_device("auto" if config is None else config.train.accelerator)
        return cls(run, choice, load_adapter(choice).to(device), device, config)

    @property
    def name(self) -> str:
        """See :class:`ModelSession`."""
        return str(self.choice.model)

    @property
    def notes(self) -> tuple[str, ...]:
        """See :class:`ModelSession`."""
        return self.model.notes

    @property
    def route_on(self) -> RoutedOn:
        """Returns ``"none"``: there are no experts."""
        return "none"

    @property
    def scale(self) -> float:
        """See :class:`ModelSession`."""
        return self.model.scale

    @property
    def batch_size(self) -> int:
        """See :class:`ModelSession`."""
        return BATCH_SIZE

    @property
    def modalities(self) -> tuple[str, ...]:
        """Returns none: there are no experts."""
        return ()

    @property
    def data(self) -> str:
        """See :class:`ModelSession`."""
        return self._config().data.data

    @property
    def force_dicom(self) -> bool:
        """See :class:`ModelSession`."""
        return self.config is not None and self.config.data.force_dicom

    def source(self) -> PairSource:
        """See :class:`ModelSession`."""
        config = self._config()
        source = build_source(config)
        check_unchanged(Path(str(self.choice.data_of)), source.splits(), data=config.data.data)
        return source

    def weights_checksum(self, checkpoint: str) -> str:
        """See :class:`ModelSession`; a release has one set of weights."""
        content = hashlib.sha256(json.dumps(self.name).encode())
        for name, value in sorted(self.model.state_dict().items()):
            content.update(name.encode())
            content.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return content.hexdigest()

    def fit(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Makes the square that the release reads of an image."""
        return self.model.preprocess.fit(image)

    def boxes(self, study: Study) -> tuple[Box, ...]:
        """Returns a study's boxes in pixels of its square, without those that were cut off with their place."""
        moved = self.model.preprocess.boxes(study.boxes, study.image.shape)
        return tuple(box for box in moved if box.x1 > box.x0 and box.y1 > box.y0)

    @torch.no_grad()
    def images(self, pictures: Sequence[NDArray[np.uint8]]) -> ImageFeatures:
        """Encodes images that :meth:`fit` fitted; ``maps`` is one map in the common space, or nothing."""
        return self.model.encode_images(self.model.preprocess.batch(pictures).to(self.device))

    def tokens(self, texts: Sequence[str]) -> Tokens:
        """See :class:`ModelSession`."""
        return self.model.tokenize(texts).to(self.device)

    def words(self, text: str) -> list[str]:
        """See :class:`ModelSession`."""
        return self.model.words(text)

    @torch.no_grad()
    def encode_texts(self, tokens: Tokens) -> TextFeatures:
        """See :class:`ModelSession`."""
        return self.model.encode_texts(tokens)

    def regions(self, image: ImageFeatures) -> Tensor:
        """Returns the map of regions ``(B, D, h, w)``.

        Raises:
            ValueError: If the model gives none.
        """
        if not image.maps:
            raise ValueError(f"the model {self.name} pools its image without a map of regions, which this needs.")
        return image.maps[-1]

    @torch.no_grad()
    def word_region_scores(self, image: ImageFeatures, text: TextFeatures) -> Tensor:
        """Computes GLoRIA's local scores ``(B, T)``, by the temperatures of a model that was trained with them.

        Raises:
            ValueError: If it was not.
        """
        if self.model.attention is None:
            raise ValueError(
                f"the model {self.name} was not trained to compare words with regions, so it has no local scores: "
                "use global ones (--scoring mean, max or pairs; --score global)."
            )
        return local_scores(self.regions(image).flatten(2).mT, text.words, text.mask, temperatures=self.model.attention)

    @torch.no_grad()
    def word_maps(self, image: ImageFeatures, text: TextFeatures) -> Tensor:
        """Computes the map of each word over its own image, ``(B, N, h, w)``.

        It is GLoRIA's attention of a model that was trained with it, else (1 + cosine of word and region) / 2.
        """
        regions = self.regions(image)
        if self.model.attention is None:
            return cosine_maps(regions, text.words, text.mask)
        maps = attention_maps(
            regions.flatten(2).mT, text.words, text.mask, temperature=self.model.attention[0], word_softmax=True
        )
        return maps.unflatten(-1, tuple(regions.shape[-2:]))

    def _config(self) -> Config:
        if self.config is None:
            raise ValueError(
                f"the model {self.name} has no data of its own: name the run whose data are used (--data-of RUN), or "
                "sets on disk (--set, --root, --csv)."
            )
        return self.config
