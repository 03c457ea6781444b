"""A pretrained run, ready to embed images and texts."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moekit.contrastive import local_scores
from recipes.data.decoded_cache import DecodedImages, existing_cache
from recipes.data.images.square import fit_boxes, fit_square
from recipes.data.images.transforms import to_tensor
from recipes.data.pairs import PairSource
from recipes.data.studies import Box, Study, StudySplit
from recipes.medmoe.build import load_model
from recipes.medmoe.config import Config
from recipes.medmoe.data.sources import build_source
from recipes.medmoe.data.tokens import Tokens, tokenize, words_of
from recipes.medmoe.features import ImageFeatures, LocalFeatures, TextFeatures
from recipes.medmoe.inference.session import ModelSession, RoutedOn
from recipes.medmoe.model import MedMoE
from recipes.shared.fingerprint import check_unchanged
from recipes.shared.runs import run_device


@dataclass(frozen=True)
class Session(ModelSession):
    """A pretrained model in eval mode with what belongs to it. Nothing here keeps a gradient.

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
    def name(self) -> str:
        """See :class:`ModelSession`; a run without experts is called by its preset."""
        return "medmoe" if self.model.config.local_branch == "experts" else self.config.preset

    @property
    def route_on(self) -> RoutedOn:
        """See :class:`ModelSession`."""
        return self.model.config.route_on if self.model.config.local_branch == "experts" else "none"

    @property
    def is_run(self) -> bool:
        """See :class:`ModelSession`."""
        return True

    @property
    def scale(self) -> float:
        """Returns GLoRIA's third temperature, or the scale that was trained."""
        return self.model.scale

    @property
    def batch_size(self) -> int:
        """See :class:`ModelSession`."""
        return self.config.train.batch_size

    @property
    def modalities(self) -> tuple[str, ...]:
        """See :class:`ModelSession`."""
        return self.model.modalities

    @property
    def data(self) -> str:
        """See :class:`ModelSession`."""
        return self.config.data.data

    @property
    def force_dicom(self) -> bool:
        """See :class:`ModelSession`."""
        return self.config.data.force_dicom

    def source(self) -> PairSource:
        """Opens the run's own data.

        Raises:
            ValueError: If they were changed since the run was trained.
        """
        source = build_source(self.config)
        check_unchanged(self.run, source.splits(), data=self.config.data.data)
        return source

    def weights_checksum(self, checkpoint: str) -> str:
        """See :class:`ModelSession`."""
        return hashlib.sha256((self.run / "checkpoints" / f"{checkpoint}.ckpt").read_bytes()).hexdigest()

    def tokens(self, texts: Sequence[str]) -> Tokens:
        """Tokenizes texts."""
        return tokenize(texts, self.model.text_encoder.tokenizer, self.config.model.text_tokens).to(self.device)

    def words(self, text: str) -> list[str]:
        """See :class:`ModelSession`."""
        return words_of(text, self.model.text_encoder.tokenizer, self.config.model.text_tokens)

    @torch.no_grad()
    def encode_texts(self, tokens: Tokens) -> TextFeatures:
        """See :class:`ModelSession`."""
        return self.model.encode_texts(tokens)

    @torch.no_grad()
    def images(self, pictures: Sequence[NDArray[np.uint8]]) -> ImageFeatures:
        """Encodes images that :meth:`picture` fitted."""
        batch = torch.stack([to_tensor(picture, self.model.image_encoder.spec) for picture in pictures])
        return self.model.encode_images(batch.to(self.device))

    def stored(self, split: StudySplit) -> DecodedImages | None:
        """See :class:`ModelSession`."""
        return existing_cache(split, self.config.train.cache_folder, self.model.image_encoder.spec.size)

    def fit(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Fits any image to the encoder's square, aspect kept, black around."""
        return fit_square(image, self.model.image_encoder.spec.size)

    def boxes(self, study: Study) -> tuple[Box, ...]:
        """Returns a study's boxes in pixels of its fitted square."""
        return fit_boxes(study.boxes, study.image.shape, self.model.image_encoder.spec.size)

    def regions(self, image: ImageFeatures) -> Tensor:
        """Returns the map of regions ``(B, D, h, w)`` of a run without experts to choose from."""
        if self.model.config.local_branch == "none":
            return self.model.plain_regions(image)
        return self.model.local(image).regions

    def local(self, image: ImageFeatures) -> LocalFeatures:
        """Returns the local features of a run without experts to choose from.

        Raises:
            ValueError: If it has no local branch.
        """
        if self.model.config.local_branch == "none":
            raise ValueError(
                f"the run {self.run} was not trained to compare words with regions, so it has no local scores: use "
                "global ones (--scoring mean, max or pairs; --score global)."
            )
        return self.model.local(image)

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
