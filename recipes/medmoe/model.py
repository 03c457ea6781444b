"""The model: an image pyramid, a text encoder, a router, and one cross-scale expert per kind of image.

Shape letters: B pairs, L scales, C_l channels of a scale, h and w the aligned map, N words, P pieces of words,
D the common width, K experts.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moekit import CrossScaleExperts, HardRouter, RouterStats, Routing, SparseMoE, first_token, masked_mean
from moekit.contrastive import aggregate_word_pieces
from recipes.medmoe.config import ModelConfig
from recipes.medmoe.data.tokens import Tokens
from recipes.medmoe.label_router import LabelRouter
from recipes.medmoe.padding import visible_regions
from recipes.shared.encoders.pyramid import PyramidEncoder
from recipes.shared.encoders.spec import ImageEncoderSpec
from recipes.shared.encoders.text import TextEncoder
from recipes.shared.hub_model import HubModel

_POOLINGS = {"mean": masked_mean, "first": first_token}


class ImageFeatures(NamedTuple):
    """What the image encoder makes of images.

    Attributes:
        maps: One ``(B, C_l, H_l, W_l)`` per scale, fine to coarse.
        pooled: ``(B, C_L)``, the coarsest map in one vector.
        embedding: ``(B, D)``, of norm 1: v_g.
        visible: ``(B, h, w)``, False for regions of padding; None where padding counts.
    """

    maps: tuple[Tensor, ...]
    pooled: Tensor
    embedding: Tensor
    visible: Tensor | None = None


class TextFeatures(NamedTuple):
    """What the text encoder makes of texts.

    Attributes:
        words: ``(B, N, D)``.
        mask: ``(B, N)``, True for words of the text.
        embedding: ``(B, D)``, of norm 1: t_g.
        pooled: ``(B, D_t)``, the encoder's own vector of the text.
    """

    words: Tensor
    mask: Tensor
    embedding: Tensor
    pooled: Tensor


class LocalFeatures(NamedTuple):
    """What the chosen experts make of images.

    Attributes:
        regions: ``(B, D, h, w)``.
        routing: One row per image.
        stats: What the sparse layer counted.
        scale_weights: ``(B, L, h, w)``, β of each image's own expert over the scales that it reads; on request.
        visible: Of :class:`ImageFeatures`.
        temperature: ``()``, the first temperature where it is trained.
    """

    regions: Tensor
    routing: Routing
    stats: RouterStats
    scale_weights: Tensor | None = None
    visible: Tensor | None = None
    temperature: Tensor | None = None

    @property
    def places(self) -> Tensor:
        """Returns the regions as a sequence, ``(B, h·w, D)``."""
        return self.regions.flatten(2).mT

    @property
    def region_mask(self) -> Tensor | None:
        """Returns which of the places count, ``(B, h·w)``; None where all do."""
        return None if self.visible is None else self.visible.flatten(1)

    def first_temperature(self, config: ModelConfig) -> float | Tensor:
        """Returns the temperature of the attention: the trained one, or that of the settings."""
        return config.temperatures[0] if self.temperature is None else self.temperature


class MedMoE(nn.Module, HubModel, library_name="moekit", tags=["mixture-of-experts", "medical"]):
    """MedMoE, section 4, with the deviations of ``docs/papers.md``.

    The expert changes the local features only. The global embedding, and with it zero-shot classification by
    cosine, does not depend on the routing. ``save_pretrained``, ``from_pretrained`` and ``push_to_hub`` are those of
    :class:`HubModel`.

    Args:
        config: The architecture.
        image_encoder: Gives a pyramid of maps.
        text_encoder: Gives states of the tokens.

    Raises:
        ValueError: If there are fewer experts than modalities, or ``align_to`` or one of ``local_scales`` is no scale
            of the encoder.
    """

    settings = ModelConfig

    def __init__(self, config: ModelConfig, image_encoder: PyramidEncoder, text_encoder: TextEncoder) -> None:
        super().__init__()
        if config.num_experts < len(config.modalities):
            raise ValueError(
                f"num_experts must be at least the number of modalities, {len(config.modalities)}, "
                f"got {config.num_experts} (--num-experts, --modalities)."
            )
        scales, count = config.local_scales, len(image_encoder.channels)
        if scales and (list(scales) != sorted(set(scales)) or scales[-1] >= count or config.align_to not in scales):
            raise ValueError(
                f"local_scales must be ascending, from 0 to {count - 1}, and hold align_to={config.align_to}, got "
                f"{scales} (--local-scales, --align-to)."
            )
        self.config = config
        self.modalities = tuple(config.modalities)
        self.image_encoder = image_encoder
        self.text_encoder = text_encoder
        if config.text_frozen:
            text_encoder.requires_grad_(False)
        self.image_projection = nn.Linear(image_encoder.dim, config.dim)
        self.text_projection = nn.Linear(text_encoder.dim, config.dim)
        self.word_projection = nn.Linear(text_encoder.dim, config.dim)
        experts = CrossScaleExperts(
            image_encoder.channels,
            config.expert_dim,
            config.num_experts,
            depth=config.expert_depth,
            norm=config.expert_norm,
            align_to=config.align_to,
            logits_at=config.scale_logits,
            scales=config.local_scales or None,
        )
        self.region_projection = nn.Conv2d(config.expert_dim, config.dim, 1)
        if config.route_on == "label":
            self.moe = SparseMoE(LabelRouter(config.num_experts), experts)
        else:
            width = image_encoder.dim if config.route_on == "image" else text_encoder.dim
            self.router_norm = nn.LayerNorm(width)
            router = HardRouter(
                width,
                config.num_experts,
                gradient=config.router_gradient,
                gate_hidden_dim=config.router_hidden_dim,
                gate_bias=True,
                init_scale=1.0,
            )
            self.moe = SparseMoE(router, experts)
        if config.learned_temperature:
            self.log_temperature = nn.Parameter(torch.tensor(float(config.temperatures[0])).log())
        self.register_load_state_dict_pre_hook(_rename_old_weights)

    def architecture(self) -> dict[str, Any]:
        """See :meth:`HubModel.architecture`."""
        return {"image": self.image_encoder.spec.to_json()}

    @classmethod
    def from_architecture(cls, config: ModelConfig, about: dict[str, Any], text_encoder: TextEncoder) -> "MedMoE":
        """See :meth:`HubModel.from_architecture`."""
        return cls(config, PyramidEncoder.from_spec(ImageEncoderSpec.from_json(about["image"])), text_encoder)

    def train(self, mode: bool = True) -> "MedMoE":
        """Sets the mode; a frozen text encoder stays without dropout."""
        super().train(mode)
        if self.config.text_frozen:
            self.text_encoder.eval()
        return self

    def encode_images(self, images: Tensor) -> ImageFeatures:
        """Encodes ``(B, 3, size, size)`` normalised images."""
        maps = self.image_encoder(images)
        pooled = maps[-1].amax((2, 3)) if self.config.image_pooling == "max" else maps[-1].mean((2, 3))
        size = maps[self.config.align_to].shape[-2:]
        visible = visible_regions(images, (size[0], size[1])) if self.config.mask_padding else None
        return ImageFeatures(maps, pooled, F.normalize(self.image_projection(pooled), dim=-1), visible)

    def encode_texts(self, tokens: Tokens) -> TextFeatures:
        """Encodes texts; the pieces of a word become one vector."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.config.text_frozen):
            states = self.text_encoder(tokens.input_ids, tokens.attention_mask.long())
        pooled = _POOLINGS[self.config.text_pooling](states, tokens.attention_mask)
        words, mask = aggregate_word_pieces(
            states, tokens.word_ids, how=self.config.word_pieces, num_words=tokens.num_words
        )
        embedding = F.normalize(self.text_projection(pooled), dim=-1)
        return TextFeatures(self.word_projection(words), mask, embedding, pooled)

    def route(
        self,
        *,
        image: ImageFeatures | None = None,
        text: TextFeatures | None = None,
        labels: Tensor | None = None,
    ) -> Routing:
        """Chooses an expert for each row of what ``config.route_on`` names.

        Args:
            image: Needed where images decide.
            text: Needed where texts decide.
            labels: ``(B,)``, places of known modalities; needed where labels decide.

        Raises:
            ValueError: If what decides was not given, or a label is not known.
        """
        router_input = {"image": image, "text": text, "label": labels}[self.config.route_on]
        if router_input is None:
            raise ValueError(f"the model routes on the {self.config.route_on}, which was not given.")
        if not isinstance(router_input, Tensor):
            router_input = self.router_norm(router_input.pooled)
        return self.moe.router(router_input)

    def local(self, image: ImageFeatures, routing: Routing, *, need_weights: bool = False) -> LocalFeatures:
        """Runs each image through its expert.

        Args:
            image: The pyramid.
            routing: One row per image, of :meth:`route`; it is used as it is, so the router does not run again.
            need_weights: Whether to return the weights of the scales.
        """
        plan = self.moe.plan(routing)
        output, stats = self.moe(image.maps, routing=routing, plan=plan)
        weights = self.moe.experts.scale_weights(image.maps, plan) if need_weights else None
        temperature = self.log_temperature.exp() if self.config.learned_temperature else None
        return LocalFeatures(self.region_projection(output), routing, stats, weights, image.visible, temperature)

    def forward(
        self, images: Tensor, tokens: Tokens, labels: Tensor
    ) -> tuple[ImageFeatures, TextFeatures, LocalFeatures]:
        """Computes everything that the losses need of a batch of pairs."""
        image, text = self.encode_images(images), self.encode_texts(tokens)
        return image, text, self.local(image, self.route(image=image, text=text, labels=labels))


def _rename_old_weights(model: MedMoE, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Loads runs made before router and experts became parts of ``moe``."""
    for name in list(state):
        rest = name.removeprefix(prefix)
        if rest.startswith(("experts.", "router.")):
            state[f"{prefix}moe.{rest}"] = state.pop(name)
