"""The model: an image pyramid, a text encoder, a router, and one cross-scale expert per kind of image.

Shape letters: B pairs, L scales, C_l channels of a scale, h and w the aligned map, N words, P pieces of words,
D the common width, K experts.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moekit import CrossScaleExperts, DispatchPlan, HardRouter, Routing, first_token, masked_mean, plan_dispatch
from moekit.contrastive import aggregate_word_pieces
from recipes.medmoe.config import ModelConfig
from recipes.medmoe.data.tokens import Tokens
from recipes.shared.encoders.pyramid import PyramidEncoder
from recipes.shared.encoders.text import TextEncoder

_POOLINGS = {"mean": masked_mean, "first": first_token}


class ImageFeatures(NamedTuple):
    """What the image encoder sees.

    Attributes:
        maps: One ``(B, C_l, H_l, W_l)`` per scale, fine to coarse.
        pooled: ``(B, C_L)``, the coarsest map in one vector.
        embedding: ``(B, D)``, of norm 1: v_g.
    """

    maps: tuple[Tensor, ...]
    pooled: Tensor
    embedding: Tensor


class TextFeatures(NamedTuple):
    """What the text encoder reads.

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
    """What the chosen experts see.

    Attributes:
        regions: ``(B, D, h, w)``.
        routing: One row per image.
        scale_weights: ``(B, L, h, w)``, β of each image's own expert; on request.
    """

    regions: Tensor
    routing: Routing
    scale_weights: Tensor | None = None


class MedMoE(nn.Module):
    """MedMoE, section 4, with the deviations of ``docs/papers.md``.

    The expert changes the local features only. The global embedding, and with it zero-shot classification by
    cosine, does not depend on the routing.

    Args:
        config: The architecture.
        image_encoder: Gives a pyramid of maps.
        text_encoder: Gives states of the tokens.

    Raises:
        ValueError: If there are fewer experts than modalities, or ``align_to`` is no scale of the encoder.
    """

    def __init__(self, config: ModelConfig, image_encoder: PyramidEncoder, text_encoder: TextEncoder) -> None:
        super().__init__()
        if config.num_experts < len(config.modalities):
            raise ValueError(
                f"num_experts must be at least the number of modalities, {len(config.modalities)}, "
                f"got {config.num_experts}."
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
        self.experts = CrossScaleExperts(
            image_encoder.channels,
            config.expert_dim,
            config.num_experts,
            depth=config.expert_depth,
            norm=config.expert_norm,
            align_to=config.align_to,
            logits_at=config.scale_logits,
        )
        self.region_projection = nn.Conv2d(config.expert_dim, config.dim, 1)
        self.router = None
        if config.route_on != "label":
            width = image_encoder.dim if config.route_on == "image" else text_encoder.dim
            self.router_norm = nn.LayerNorm(width)
            self.router = HardRouter(
                width,
                config.num_experts,
                gradient=config.router_gradient,
                gate_hidden_dim=config.router_hidden_dim,
                gate_bias=True,
                init_scale=1.0,
            )

    def train(self, mode: bool = True) -> "MedMoE":
        """A frozen text encoder stays without dropout."""
        super().train(mode)
        if self.config.text_frozen:
            self.text_encoder.eval()
        return self

    def encode_images(self, images: Tensor) -> ImageFeatures:
        """Encodes ``(B, 3, size, size)`` normalised images."""
        maps = self.image_encoder(images)
        pooled = maps[-1].amax((2, 3)) if self.config.image_pooling == "max" else maps[-1].mean((2, 3))
        return ImageFeatures(maps, pooled, F.normalize(self.image_projection(pooled), dim=-1))

    def encode_texts(self, tokens: Tokens) -> TextFeatures:
        """Encodes texts; the pieces of a word become one vector."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.config.text_frozen):
            states = self.text_encoder(tokens.input_ids, tokens.attention_mask.long())
        pooled = _POOLINGS[self.config.text_pooling](states, tokens.attention_mask)
        words, mask = aggregate_word_pieces(states, tokens.word_ids, how=self.config.word_pieces)
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
        given = {"image": image, "text": text, "label": labels}[self.config.route_on]
        if given is None:
            raise ValueError(f"the model routes on the {self.config.route_on}, which was not given.")
        if isinstance(given, Tensor):
            return label_routing(given, self.config.num_experts)
        assert self.router is not None
        return self.router(self.router_norm(given.pooled))

    def local(self, image: ImageFeatures, routing: Routing, *, need_weights: bool = False) -> LocalFeatures:
        """Runs each image through its expert.

        Args:
            image: The pyramid.
            routing: One row per image.
            need_weights: Whether to return the weights of the scales.
        """
        plan = self._plan(routing)
        regions = self.region_projection(self.experts(image.maps, plan, routing.gates))
        weights = self.experts.scale_weights(image.maps, plan) if need_weights else None
        return LocalFeatures(regions, routing, weights)

    def forward(
        self, images: Tensor, tokens: Tokens, labels: Tensor
    ) -> tuple[ImageFeatures, TextFeatures, LocalFeatures]:
        """Everything that the losses need of a batch of pairs."""
        image, text = self.encode_images(images), self.encode_texts(tokens)
        return image, text, self.local(image, self.route(image=image, text=text, labels=labels))

    def _plan(self, routing: Routing) -> DispatchPlan:
        return plan_dispatch(routing.expert_ids, self.config.num_experts, kept=routing.valid.unsqueeze(-1))


def label_routing(labels: Tensor, num_experts: int) -> Routing:
    """The routing of known modalities: expert k for label k, with gate and probability 1.

    Args:
        labels: ``(B,)``, each in ``[0, num_experts)``.
        num_experts: ``K``.

    Raises:
        ValueError: If a label is negative: a pair without a known modality cannot be routed by it.
    """
    if bool((labels < 0).any()):
        raise ValueError(
            "a model that routes on the label needs the modality of every image, but some are not known: "
            "name them in the data, or use --route-on image."
        )
    probs = F.one_hot(labels, num_experts).float()
    valid = torch.ones_like(labels, dtype=torch.bool)
    return Routing(probs.new_ones(len(labels), 1), labels.unsqueeze(-1), None, probs, valid)
