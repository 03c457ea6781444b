"""A pretrained run, ready to embed images and texts."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from moekit.contrastive import local_scores
from recipes.data.decoded_cache import DecodedImages, existing_cache
from recipes.data.images.square import fit_boxes, fit_square
from recipes.data.images.transforms import to_tensor
from recipes.data.pairs import PairSource
from recipes.data.studies import Box, Study, StudySplit
from recipes.medmoe.build import load_model
from recipes.medmoe.config import Config
from recipes.medmoe.data.sources import build_source
from recipes.medmoe.data.tokens import Tokens, tokenize
from recipes.medmoe.model import ImageFeatures, LocalFeatures, MedMoE, TextFeatures
from recipes.shared.fingerprint import check_unchanged
from recipes.shared.runs import run_device


@dataclass(frozen=True)
class Session:
    """A model in eval mode with what belongs to it. Nothing here keeps a gradient.

    Attributes:
        run: Folder of the run.
        config: Its settings.
        model: The model.
        device: Where it computes.
    """

    run: Path
    config: Config
    model: MedMoE
    device: torch.device

    @classmethod
    def open(cls, run: Path, checkpoint: str = "best") -> "Session":
        """Loads a run, onto a GPU where there is one and the run was not set to ``cpu``.

        Raises:
            ValueError: If the folder is not that of a pretrained run.
        """
        model, config = load_model(run, checkpoint)
        device = run_device(config.train.accelerator)
        return cls(run, config, model.to(device).requires_grad_(False), device)

    @property
    def modalities(self) -> tuple[str, ...]:
        """Returns the names of the experts' modalities: expert k is meant for the k-th."""
        return self.model.modalities

    def source(self) -> PairSource:
        """Opens the run's own data.

        Raises:
            ValueError: If they were changed since the run was trained.
        """
        source = build_source(self.config)
        check_unchanged(self.run, source.splits(), data=self.config.data.data)
        return source

    def tokens(self, texts: Sequence[str]) -> Tokens:
        """Tokenizes texts."""
        return tokenize(texts, self.model.text_encoder.tokenizer, self.config.model.text_tokens).to(self.device)

    @torch.no_grad()
    def texts(self, texts: Sequence[str], *, batch_size: int = 64) -> TextFeatures:
        """Encodes texts, padded to the longest of all."""
        tokens = self.tokens(texts)
        parts = [
            self.model.encode_texts(tokens.rows(slice(start, start + batch_size)))
            for start in range(0, len(texts), batch_size)
        ]
        longest = max(part.mask.shape[1] for part in parts)
        return TextFeatures(
            torch.cat([_padded(part.words, longest) for part in parts]),
            torch.cat([_padded(part.mask, longest) for part in parts]),
            torch.cat([part.embedding for part in parts]),
            torch.cat([part.pooled for part in parts]),
        )

    @torch.no_grad()
    def images(self, pictures: Sequence[NDArray[np.uint8]]) -> ImageFeatures:
        """Encodes images that :meth:`picture` fitted."""
        batch = torch.stack([to_tensor(picture, self.model.image_encoder.spec) for picture in pictures])
        return self.model.encode_images(batch.to(self.device))

    def image_batches(
        self, split: StudySplit, *, title: str | None = None
    ) -> Iterator[tuple[list[int], ImageFeatures]]:
        """Encodes a split batch by batch, in its order.

        Args:
            split: The studies.
            title: Of a progress bar; none by default.
        """
        size = self.config.train.batch_size
        stored = existing_cache(split, self.config.train.cache_folder, self.model.image_encoder.spec.size)
        for start in tqdm(range(0, len(split), size), desc=title, disable=title is None, leave=False):
            rows = list(range(start, min(start + size, len(split))))
            yield rows, self.images([self.picture(split, row, stored) for row in rows])

    def picture(self, split: StudySplit, index: int, stored: DecodedImages | None = None) -> NDArray[np.uint8]:
        """Returns a study's image fitted to the encoder's square, from the cache of decoded images if it is there."""
        image = None if stored is None else stored(index)
        return self.fit(split[index].image) if image is None else image

    def fit(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Fits any image to the encoder's square, aspect kept, black around."""
        return fit_square(image, self.model.image_encoder.spec.size)

    def boxes(self, study: Study) -> tuple[Box, ...]:
        """Returns a study's boxes in pixels of its fitted square."""
        return fit_boxes(study.boxes, study.image.shape, self.model.image_encoder.spec.size)

    @torch.no_grad()
    def word_region_scores(self, local: LocalFeatures, text: TextFeatures) -> Tensor:
        """Computes GLoRIA's scores ``(B, T)`` of every image's regions with every text's words."""
        return local_scores(
            local.places,
            text.words,
            text.mask,
            temperatures=(local.first_temperature(self.config.model), self.config.model.temperatures[1]),
            aggregation=self.config.train.word_aggregation,
            word_softmax=self.config.model.word_softmax,
            similarity=self.config.model.attention,
            region_mask=local.region_mask,
        )


def _padded(rows: Tensor, length: int) -> Tensor:
    """Appends zeros (False) to dimension 1."""
    missing = rows.new_zeros(rows.shape[0], length - rows.shape[1], *rows.shape[2:])
    return torch.cat([rows, missing], dim=1)
