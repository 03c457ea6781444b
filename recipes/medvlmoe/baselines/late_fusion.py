"""Late fusion: a vector of the image and a vector of the text, side by side, into one small network.

Shape letters: B studies, N tokens of a text, D the common width.
"""

from typing import Any

import torch
from torch import Tensor, nn

from recipes.data.studies import Task
from recipes.medvlmoe.config import ModelConfig
from recipes.medvlmoe.modalities import fill_missing
from recipes.medvlmoe.model import POOLINGS, Diagnosis
from recipes.medvlmoe.tuning import tune_encoders
from recipes.shared.encoders.image import ImageEncoder
from recipes.shared.encoders.spec import ImageEncoderSpec
from recipes.shared.encoders.text import TextEncoder
from recipes.shared.hub_model import HubModel
from recipes.shared.tasks import TaskHead


class LateFusion(nn.Module, HubModel, library_name="moekit", tags=["multimodal", "medical"]):
    """Concatenates the pooled vectors of two encoders, as models of visual question answering do.

    A study without a text, or without an image, has a learned vector in its place.

    Args:
        config: The architecture.
        image_encoder: Its image encoder.
        text_encoder: Its text encoder; ``None`` where no study has a text.
        num_classes: Number of classes.
        task: Kind of the target.
    """

    settings = ModelConfig

    def __init__(
        self,
        config: ModelConfig,
        image_encoder: ImageEncoder,
        text_encoder: TextEncoder | None,
        num_classes: int,
        task: Task,
    ) -> None:
        super().__init__()
        self.config = config
        self.num_classes = num_classes
        self.task: Task = task
        self.image_encoder = image_encoder
        self.text_encoder = text_encoder
        tune_encoders(config, image_encoder, text_encoder)
        self.image_projection = nn.Linear(image_encoder.dim, config.dim)
        self.null_image = nn.init.trunc_normal_(nn.Parameter(torch.zeros(config.dim)), std=0.02)
        self.null_text = nn.init.trunc_normal_(nn.Parameter(torch.zeros(config.dim)), std=0.02)
        if text_encoder is not None:
            self.text_projection = nn.Linear(text_encoder.dim, config.dim)
        self.mixer = nn.Sequential(
            nn.LayerNorm(2 * config.dim),
            nn.Dropout(config.dropout),
            nn.Linear(2 * config.dim, config.dim),
            nn.GELU(),
            nn.Dropout(config.dropout),
        )
        self.head = TaskHead(config.dim, num_classes, task)

    def architecture(self) -> dict[str, Any]:
        """See :meth:`HubModel.architecture`."""
        return {"image": self.image_encoder.spec.to_json(), "num_classes": self.num_classes, "task": self.task}

    @classmethod
    def from_architecture(
        cls, config: ModelConfig, about: dict[str, Any], text_encoder: TextEncoder | None
    ) -> "LateFusion":
        """See :meth:`HubModel.from_architecture`."""
        image_encoder = ImageEncoder.from_spec(ImageEncoderSpec.from_json(about["image"]))
        return cls(config, image_encoder, text_encoder, about["num_classes"], about["task"])

    def forward(
        self,
        images: Tensor,
        input_ids: Tensor,
        text_mask: Tensor,
        image_mask: Tensor | None = None,
        *,
        need_attention: bool = False,
    ) -> Diagnosis:
        """Diagnoses a batch; see :meth:`recipes.medvlmoe.model.MedVLMoE.forward`. There is no attention to return."""
        image = self._image(images, image_mask)
        features = torch.cat([image, self._text(input_ids, text_mask).to(image.dtype)], dim=-1)
        return Diagnosis(self.head(self.mixer(features)))

    def _image(self, images: Tensor, present: Tensor | None) -> Tensor:
        """Returns ``(B, D)``: the image's vector, or the learned one where there is no image."""
        if present is None:
            present = torch.ones(len(images), dtype=torch.bool, device=images.device)
        else:
            images = fill_missing(images, present)
        image = self.image_projection(self.image_encoder(images).summary)
        return torch.where(present.unsqueeze(1), image, self.null_image.to(image.dtype))

    def _text(self, input_ids: Tensor, text_mask: Tensor) -> Tensor:
        """Returns ``(B, D)``: the text's vector, or the learned one where there is no text."""
        if self.text_encoder is None:
            return self.null_text.expand(len(input_ids), -1)
        has_text = text_mask.any(1, keepdim=True)
        seen = text_mask.clone()
        seen[:, :1] |= ~has_text  # one unread token: attention over nothing at all is not defined
        pooled = POOLINGS[self.config.text_pooling](self.text_encoder(input_ids, seen.long()), seen)
        text = self.text_projection(pooled)
        return torch.where(has_text, text, self.null_text.to(text.dtype))
