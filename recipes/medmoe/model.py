"""The model: an image pyramid, a text encoder, a router, and one cross-scale expert per kind of image.

Shape letters: B pairs, L scales, C_l channels of a scale, h and w the aligned map, N words, P pieces of words,
D the common width, K experts.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moekit import CrossScaleExperts, HardRouter, Routing, SparseMoE, first_token, masked_max, masked_mean
from moekit.contrastive import aggregate_word_pieces
from moekit.routers import Router
from recipes.medmoe.config import ModelConfig
from recipes.medmoe.data.tokens import Tokens
from recipes.medmoe.features import ImageFeatures, LocalFeatures, TextFeatures
from recipes.medmoe.label_router import LabelRouter, label_routing
from recipes.medmoe.padding import visible_regions
from recipes.shared.encoders.pyramid import PyramidEncoder
from recipes.shared.encoders.spec import ImageEncoderSpec
from recipes.shared.encoders.text import TextEncoder
from recipes.shared.hub_model import HubModel

_POOLINGS = {"mean": masked_mean, "first": first_token, "max": masked_max}
MOST_SCALE = 100.0
"""Largest trained factor of the cosines, as in CLIP."""


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

    Without experts (``config.local_branch``) it is what the baselines train: see :mod:`recipes.medmoe.baselines`.
    """

    settings = ModelConfig

    def __init__(self, config: ModelConfig, image_encoder: PyramidEncoder, text_encoder: TextEncoder) -> None:
        super().__init__()
        _check(config, image_encoder)
        self.config = config
        self.modalities = tuple(config.modalities)
        self.image_encoder = image_encoder
        self.text_encoder = text_encoder
        if config.text_frozen:
            text_encoder.requires_grad_(False)
        self.image_projection = _projection(config.projection, image_encoder.dim, config.dim)
        self.text_projection = _projection(config.projection, text_encoder.dim, config.dim)
        self.moe: SparseMoE | None = None
        if config.local_branch != "none":
            self.word_projection = nn.Linear(text_encoder.dim, config.dim)
            experts = None if config.local_branch == "map" else self._experts(config)
            width = image_encoder.channels[config.align_to] if experts is None else config.expert_dim
            self.region_projection = nn.Conv2d(width, config.dim, 1)
            if experts is not None:
                self.moe = SparseMoE(self._router(config, experts.num_experts), experts)
        if config.learned_temperature:
            self.log_temperature = nn.Parameter(torch.tensor(float(config.temperatures[0])).log())
        if config.learned_scale:
            self.log_scale = nn.Parameter(torch.tensor(math.log(config.temperatures[2])))
        self.register_load_state_dict_pre_hook(_rename_old_weights)

    def _experts(self, config: ModelConfig) -> CrossScaleExperts:
        return CrossScaleExperts(
            self.image_encoder.channels,
            config.expert_dim,
            1 if config.local_branch == "one-expert" else config.num_experts,
            depth=config.expert_depth,
            norm=config.expert_norm,
            align_to=config.align_to,
            logits_at=config.scale_logits,
            scales=config.local_scales or None,
        )

    def _router(self, config: ModelConfig, num_experts: int) -> Router:
        """Makes what chooses the expert; what there is of one expert chooses nothing."""
        if config.local_branch == "one-expert" or config.route_on == "label":
            return LabelRouter(num_experts)
        width = self.image_encoder.dim if config.route_on == "image" else self.text_encoder.dim
        self.router_norm = nn.LayerNorm(width)
        return HardRouter(
            width,
            num_experts,
            gradient=config.router_gradient,
            gate_hidden_dim=config.router_hidden_dim,
            gate_bias=True,
            init_scale=1.0,
        )

    @property
    def scale(self) -> float:
        """What multiplies the cosines of whole images and texts."""
        trained = self._trained_scale()
        return self.config.temperatures[2] if trained is None else float(trained.detach())

    def _trained_scale(self) -> Tensor | None:
        return self.log_scale.exp().clamp(max=MOST_SCALE) if self.config.learned_scale else None

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
        embedding = F.normalize(self.image_projection(pooled), dim=-1)
        return ImageFeatures(maps, pooled, embedding, visible, self._trained_scale())

    def encode_texts(self, tokens: Tokens) -> TextFeatures:
        """Encodes texts; the pieces of a word become one vector."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.config.text_frozen):
            states = self.text_encoder(tokens.input_ids, tokens.attention_mask.long())
        pooled = _POOLINGS[self.config.text_pooling](states, tokens.attention_mask)
        words, mask = aggregate_word_pieces(
            states, tokens.word_ids, how=self.config.word_pieces, num_words=tokens.num_words
        )
        embedding = F.normalize(self.text_projection(pooled), dim=-1)
        project = self.text_projection if self.config.local_branch == "none" else self.word_projection
        return TextFeatures(project(words), mask, embedding, pooled)

    def route(
        self,
        *,
        image: ImageFeatures | None = None,
        text: TextFeatures | None = None,
        labels: Tensor | None = None,
    ) -> Routing | None:
        """Chooses an expert for each row of what ``config.route_on`` names; nothing without experts to choose from.

        Args:
            image: Needed where images decide.
            text: Needed where texts decide.
            labels: ``(B,)``, places of known modalities; needed where labels decide.

        Raises:
            ValueError: If what decides was not given, or a label is not known.
        """
        if self.config.local_branch != "experts":
            return None
        assert self.moe is not None
        router_input = {"image": image, "text": text, "label": labels}[self.config.route_on]
        if router_input is None:
            raise ValueError(f"the model routes on the {self.config.route_on}, which was not given.")
        if not isinstance(router_input, Tensor):
            router_input = self.router_norm(router_input.pooled)
        return self.moe.router(router_input)

    def local(
        self, image: ImageFeatures, routing: Routing | None = None, *, need_weights: bool = False
    ) -> LocalFeatures:
        """Runs each image through its expert, or through what stands in the experts' place.

        Args:
            image: The pyramid.
            routing: One row per image, of :meth:`route`; it is used as it is, so the router does not run again.
            need_weights: Whether to return the weights of the scales.

        Raises:
            ValueError: If the model has no local branch.
        """
        temperature = self.log_temperature.exp() if self.config.learned_temperature else None
        if self.config.local_branch == "none":
            raise ValueError("the model compares whole images with whole texts and has no local branch.")
        if self.moe is None:
            regions = self.region_projection(image.maps[self.config.align_to])
            return LocalFeatures(regions, None, None, None, image.visible, temperature)
        own = routing
        if self.config.local_branch == "one-expert":
            own = label_routing(torch.zeros(len(image.pooled), dtype=torch.int64, device=image.pooled.device), 1)
        assert own is not None
        plan = self.moe.plan(own)
        output, stats = self.moe(image.maps, routing=own, plan=plan)
        weights = self.moe.experts.scale_weights(image.maps, plan) if need_weights else None
        counted = None if routing is None else stats
        return LocalFeatures(self.region_projection(output), routing, counted, weights, image.visible, temperature)

    def plain_regions(self, image: ImageFeatures) -> Tensor:
        """Returns a map of regions ``(B, D, h, w)`` without a trained local branch.

        What projects the whole image projects each place of its coarsest map (MaskCLIP,
        https://arxiv.org/abs/2112.01071).
        """
        return self.image_projection(image.maps[-1].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    def forward(
        self, images: Tensor, tokens: Tokens, labels: Tensor
    ) -> tuple[ImageFeatures, TextFeatures, LocalFeatures | None]:
        """Computes everything that the losses need of a batch of pairs; no local features without a local branch."""
        image, text = self.encode_images(images), self.encode_texts(tokens)
        if self.config.local_branch == "none":
            return image, text, None
        return image, text, self.local(image, self.route(image=image, text=text, labels=labels))


def _check(config: ModelConfig, image_encoder: PyramidEncoder) -> None:
    """Refuses settings that fit neither one another nor the image encoder."""
    if config.local_branch == "experts" and config.num_experts < len(config.modalities):
        raise ValueError(
            f"num_experts must be at least the number of modalities, {len(config.modalities)}, "
            f"got {config.num_experts} (--num-experts, --modalities)."
        )
    scales, count = config.local_scales, len(image_encoder.channels)
    if config.align_to >= count:
        raise ValueError(
            f"align_to (--align-to) must be a scale of the encoder, 0 to {count - 1}, got {config.align_to}."
        )
    if scales and (list(scales) != sorted(set(scales)) or scales[-1] >= count or config.align_to not in scales):
        raise ValueError(
            f"local_scales must be ascending, from 0 to {count - 1}, and hold align_to={config.align_to}, got "
            f"{scales} (--local-scales, --align-to)."
        )


def _projection(kind: str, width: int, dim: int) -> nn.Module:
    """Makes what maps features into the common space: one matrix, or two with a ReLU."""
    if kind == "mlp":
        return nn.Sequential(nn.Linear(width, dim), nn.ReLU(), nn.Linear(dim, dim))
    return nn.Linear(width, dim)


def _rename_old_weights(model: MedMoE, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Loads runs made before router and experts became parts of ``moe``."""
    for name in list(state):
        rest = name.removeprefix(prefix)
        if rest.startswith(("experts.", "router.")):
            state[f"{prefix}moe.{rest}"] = state.pop(name)
