"""Two encoders that meet in a common space: what a contrastive stage trains, and a zero-shot classifier.

Shape letters: B studies, N tokens of a text, D the common width, C classes.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moekit.contrastive import aggregate_word_pieces
from recipes.data.studies import Task
from recipes.medvlmoe.baselines.config import ContrastConfig
from recipes.medvlmoe.baselines.objectives import PairFeatures
from recipes.medvlmoe.baselines.prompts import class_prompts
from recipes.medvlmoe.baselines.words import MaskedWords, WordPieces
from recipes.medvlmoe.config import ModelConfig
from recipes.medvlmoe.model import POOLINGS, Diagnosis
from recipes.medvlmoe.tuning import tune_encoders
from recipes.shared.encoders.image import ImageEncoder, ImageTokens
from recipes.shared.encoders.spec import ImageEncoderSpec
from recipes.shared.encoders.text import TextEncoder
from recipes.shared.hub_model import HubModel
from recipes.shared.tasks import TaskLoss

MOST_SCALE = 100.0
"""Largest factor of the cosines, as in CLIP."""


class PairModel(nn.Module, HubModel, library_name="moekit", tags=["contrastive", "medical"]):
    """An image and a text encoder with projections into a common space.

    Its diagnosis is zero-shot: a class is as probable as the image is similar to the text that names it. Of a
    multi-label task each class is the choice between the text that names the finding and the one that denies it, as in
    CheXzero; of other tasks the choice is between the texts of all classes.

    Args:
        config: The architecture; ``config.contrast.objective`` decides what there is to train.
        image_encoder: Its image encoder.
        text_encoder: Its text encoder.
        classes: Names of the ``C`` classes, for the prompts.
        task: Kind of the target.

    Raises:
        ValueError: If the settings do not fit the text encoder.
    """

    settings = ModelConfig

    def __init__(
        self,
        config: ModelConfig,
        image_encoder: ImageEncoder,
        text_encoder: TextEncoder,
        classes: tuple[str, ...],
        task: Task,
    ) -> None:
        super().__init__()
        self.config = config
        self.classes = tuple(classes)
        self.task: Task = task
        self.image_encoder = image_encoder
        self.text_encoder = text_encoder
        tune_encoders(config, image_encoder, text_encoder)
        self.head = TaskLoss(task)
        contrast = config.contrast
        self.image_projection = _projection(contrast, image_encoder, config.dim)
        self.text_projection = _projection(contrast, text_encoder, config.dim)
        if contrast.objective == "gloria":
            self.region_projection = nn.Linear(image_encoder.dim, config.dim)
            self.word_projection = nn.Linear(text_encoder.dim, config.dim)
        if contrast.objective in ("gloria", "biovil"):
            self.pieces = WordPieces(text_encoder.tokenizer)
        predicts_words = contrast.objective == "biovil" and contrast.masked_weight
        self.masked_words = MaskedWords(text_encoder.dim, text_encoder.tokenizer) if predicts_words else None
        if contrast.learn_temperature:
            self.log_scale = nn.Parameter(torch.tensor(-math.log(contrast.temperature)))
        freeze_layers(text_encoder, contrast.frozen_text_layers)
        prompt_ids, prompt_mask = _tokenized_prompts(config, text_encoder.tokenizer, self.classes, task)
        self.register_buffer("prompt_ids", prompt_ids, persistent=False)
        self.register_buffer("prompt_mask", prompt_mask, persistent=False)

    def architecture(self) -> dict[str, Any]:
        """See :meth:`HubModel.architecture`."""
        return {"image": self.image_encoder.spec.to_json(), "classes": list(self.classes), "task": self.task}

    @classmethod
    def from_architecture(
        cls, config: ModelConfig, about: dict[str, Any], text_encoder: TextEncoder | None
    ) -> "PairModel":
        """See :meth:`HubModel.from_architecture`."""
        assert text_encoder is not None
        image_encoder = ImageEncoder.from_spec(ImageEncoderSpec.from_json(about["image"]))
        return cls(config, image_encoder, text_encoder, tuple(about["classes"]), about["task"])

    @property
    def logit_scale(self) -> Tensor | float:
        """What multiplies the cosines of images and texts."""
        contrast = self.config.contrast
        if contrast.learn_temperature:
            return self.log_scale.exp().clamp(max=MOST_SCALE)
        return contrast.local_temperatures[2] if contrast.objective == "gloria" else 1 / contrast.temperature

    def forward(
        self,
        images: Tensor,
        input_ids: Tensor,
        text_mask: Tensor,
        image_mask: Tensor | None = None,
        *,
        need_attention: bool = False,
    ) -> Diagnosis:
        """Diagnoses a batch from the images alone; the other arguments are those of any model of the recipe.

        Raises:
            ValueError: If it gets an ``image_mask``.
        """
        if image_mask is not None:
            raise ValueError("image_mask must be None for a zero-shot classifier, which reads nothing but images.")
        image = F.normalize(self._image(self.image_encoder(images))[0].float(), dim=-1)
        prompts = self.text_embeddings(self.prompt_ids, self.prompt_mask)[0]
        cosines = self.logit_scale * (image @ F.normalize(prompts.float(), dim=-1).T)
        return Diagnosis(zero_shot_logits(cosines, self.task))

    def pairs(self, images: Tensor, input_ids: Tensor, text_mask: Tensor) -> PairFeatures:
        """Computes what the objective compares of a batch of pairs.

        Args:
            images: ``(B, 3, size, size)``, normalised.
            input_ids: ``(B, N)``.
            text_mask: ``(B, N)``, True at tokens of a text.
        """
        image, regions = self._image(self.image_encoder(images))
        text, states = self.text_embeddings(input_ids, text_mask)
        if self.config.contrast.objective not in ("gloria", "biovil"):
            return PairFeatures(image, text, self.logit_scale)
        word_ids = self.pieces.word_ids(input_ids, text_mask)
        words, word_mask = aggregate_word_pieces(states, word_ids, num_words=input_ids.shape[1])
        project = self.word_projection if self.config.contrast.objective == "gloria" else self.text_projection
        masked = self._masked_loss(input_ids, text_mask, word_ids) if self.training else None
        return PairFeatures(image, text, self.logit_scale, regions, project(words), word_mask, masked)

    def text_embeddings(self, input_ids: Tensor, text_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Encodes texts into ``(B, D)`` embeddings and ``(B, N, D_t)`` states of their tokens."""
        # A row without a text goes through the encoder with one token, which its caller does not read.
        seen = text_mask.clone()
        seen[:, 0] |= ~text_mask.any(1)
        states = self.text_encoder(input_ids, seen.long(), self.config.contrast.text_layers)
        return self.text_projection(POOLINGS[self.config.text_pooling](states, seen)), states

    def _image(self, encoded: ImageTokens) -> tuple[Tensor, Tensor | None]:
        """Returns embeddings ``(B, D)``, and regions where the objective compares words with them."""
        objective = self.config.contrast.objective
        if objective == "biovil":  # the mean of the projected regions is the image
            regions = self.image_projection(encoded.patches)
            return regions.mean(1), regions
        regions = self.region_projection(encoded.patches) if objective == "gloria" else None
        return self.image_projection(encoded.summary), regions

    def _masked_loss(self, input_ids: Tensor, text_mask: Tensor, word_ids: Tensor) -> Tensor | None:
        if self.masked_words is None:
            return None
        masked_ids, targets = self.masked_words.mask(input_ids, word_ids >= 0)
        states = self.text_encoder(masked_ids, text_mask.long())
        return self.masked_words(states, self.text_encoder.model.get_input_embeddings().weight, targets)


def zero_shot_logits(cosines: Tensor, task: Task) -> Tensor:
    """Turns scaled cosines with prompts into logits of a task.

    Args:
        cosines: ``(B, 2C)`` of a multi-label task, the texts that name the findings before those that deny them; else
            ``(B, C)``.
        task: Kind of the target.

    Returns:
        ``(B, C)``: of a multi-label task differences, whose sigmoid is the softmax of the two texts; or ``(B, C - 1)``
        of an ordinal task, whose sigmoids are the softmax's probabilities of lying above each grade.
    """
    if task == "multi-label":
        present, absent = cosines.chunk(2, dim=1)
        return present - absent
    if task != "ordinal-regression":
        return cosines
    upper = cosines.flip(1).logcumsumexp(dim=1).flip(1)[:, 1:]
    return upper - cosines.logcumsumexp(dim=1)[:, :-1]


def freeze_layers(encoder: TextEncoder, count: int) -> None:
    """Takes the gradient from the embeddings and the first layers of a BERT.

    Args:
        encoder: The text encoder.
        count: How many layers; 0 for nothing.

    Raises:
        ValueError: If the encoder is no BERT, or has fewer layers.
    """
    if not count:
        return
    layers = getattr(getattr(encoder.model, "encoder", None), "layer", None)
    embeddings = getattr(encoder.model, "embeddings", None)
    if layers is None or embeddings is None or count > len(layers):
        shown = "no layers of a BERT" if layers is None or embeddings is None else f"{len(layers)} layers"
        raise ValueError(
            f"frozen_text_layers (--frozen-text-layers) is {count}, but the text encoder "
            f"{type(encoder.model).__name__} has {shown}: give a smaller number, or 0 to train all of it."
        )
    for part in (embeddings, *layers[:count]):
        part.requires_grad_(False)


def _projection(contrast: ContrastConfig, encoder: ImageEncoder | TextEncoder, dim: int) -> nn.Module:
    """Makes a projection; one matrix begins as the one that the encoder was trained with, if it has that size."""
    if contrast.projection == "mlp":
        return nn.Sequential(nn.Linear(encoder.dim, dim), nn.ReLU(), nn.Linear(dim, dim))
    linear = nn.Linear(encoder.dim, dim, bias=False)
    trained = encoder.projection
    if trained is not None and trained.shape == (encoder.dim, dim):
        linear.load_state_dict({"weight": trained.T})
    return linear


def _tokenized_prompts(
    config: ModelConfig, tokenizer: Any, classes: tuple[str, ...], task: Task
) -> tuple[Tensor, Tensor]:
    """Returns token ids and mask of the prompts of the classes, padded on the right."""
    prompts = class_prompts(classes, task, config.contrast)
    tokens = [tokenizer(text, truncation=True, max_length=config.text_tokens)["input_ids"] for text in prompts]
    longest = max(1, *(len(ids) for ids in tokens))
    input_ids = torch.zeros(len(tokens), longest, dtype=torch.int64)
    mask = torch.zeros(len(tokens), longest, dtype=torch.bool)
    for row, ids in enumerate(tokens):
        input_ids[row, : len(ids)] = torch.tensor(ids, dtype=torch.int64)
        mask[row, : len(ids)] = True
    return input_ids, mask
