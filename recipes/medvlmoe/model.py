"""The model: two encoders, cross-attention both ways, a sigmoid gate, sparse experts, a classifier.

Shape letters: B studies, M image patches, N text tokens, D the common width d, C classes, E experts.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from moekit import (
    FFN,
    BidirectionalCrossAttention,
    DynamicTopKRouter,
    FFNExperts,
    ModalityGate,
    Router,
    RouterStats,
    Routing,
    SparseMoE,
    TopKRouter,
    first_token,
    last_token,
    masked_max,
    masked_mean,
)
from recipes.data.studies import Task
from recipes.medvlmoe.config import Balance, ModelConfig
from recipes.medvlmoe.modalities import fill_missing, with_null
from recipes.medvlmoe.positions import sine_positions
from recipes.medvlmoe.tuning import tune_encoders
from recipes.medvlmoe.volumes import SliceStream, encode_slices, mean_of_slices
from recipes.shared.encoders.image import ImageEncoder
from recipes.shared.encoders.spec import ImageEncoderSpec
from recipes.shared.encoders.text import TextEncoder
from recipes.shared.hub_model import HubModel
from recipes.shared.tasks import TaskHead

POOLINGS = {"mean": masked_mean, "last": last_token, "first": first_token, "max": masked_max}


class Diagnosis(NamedTuple):
    """Output of the model for a batch.

    Attributes:
        logits: ``(B, C)``, or ``(B, C - 1)`` for ordinal tasks.
        stats: Of the router; ``None`` without experts.
        routing: The router's decisions, one per study or per token; ``None`` without experts.
        routed: ``(B, S)``, True where a decision is of a real token, rows of ``routing`` in order.
        attention: ``(B, M)``, how much the text tokens look at each patch, summing to 1 (to 0 for a study without
            image); on request.
    """

    logits: Tensor
    stats: RouterStats | None = None
    routing: Routing | None = None
    routed: Tensor | None = None
    attention: Tensor | None = None


class Fused(NamedTuple):
    """Both streams after fusion, each after its null token, with what is real in each."""

    image: Tensor
    text: Tensor
    image_mask: Tensor
    text_mask: Tensor
    attention: Tensor | None


class MedVLMoE(nn.Module, HubModel, library_name="moekit", tags=["mixture-of-experts", "medical"]):
    """MedVLMoE, section 3, with the deviations of ``docs/papers.md``.

    ``save_pretrained``, ``from_pretrained`` and ``push_to_hub`` are those of :class:`HubModel`.

    Args:
        config: The architecture.
        image_encoder: Its image encoder.
        text_encoder: Its text encoder; ``None`` where no study has a text, or the variant reads none.
        num_classes: ``C``.
        task: Kind of the target.
        balance: ``"cv2"`` makes the router noisy, ``"bias"`` and ``"fitted"`` give it a selection bias; none of
            these goes with a dynamic router.
    """

    settings = ModelConfig
    added_later = frozenset({"null_image"})
    """Weights that checkpoints of earlier versions lack; they stay as they were drawn."""

    def __init__(
        self,
        config: ModelConfig,
        image_encoder: ImageEncoder,
        text_encoder: TextEncoder | None,
        num_classes: int,
        task: Task,
        balance: Balance = "switch",
    ) -> None:
        super().__init__()
        self.config = config
        self.num_classes = num_classes
        self.task: Task = task
        self.balance: Balance = balance
        self.image_encoder = image_encoder
        self.text_encoder = text_encoder if reads_text(config) else None
        tune_encoders(config, image_encoder, self.text_encoder)
        dim = config.dim
        if config.variant == "vision-only":
            self.head = TaskHead(image_encoder.dim, num_classes, task)
            return
        self.image_projection = nn.Linear(image_encoder.dim, dim)
        self.image_position = nn.Parameter(torch.zeros(1, math.prod(image_encoder.grid), dim))
        self.null_text = nn.Parameter(torch.zeros(1, 1, dim))
        if self.text_encoder is not None:
            self.text_projection = nn.Linear(self.text_encoder.dim, dim)
            self.text_position = nn.Parameter(torch.zeros(1, config.text_tokens, dim))
        for position in (self.image_position, self.null_text, getattr(self, "text_position", None)):
            if position is not None:
                nn.init.trunc_normal_(position, std=0.02)
        if config.image_positions == "sine":
            with torch.no_grad():
                self.image_position.copy_(sine_positions(image_encoder.grid, dim))
        if config.variant != "no-fusion":
            self.image_norm, self.text_norm = _norm(config, dim), _norm(config, dim)
            self.fusion = BidirectionalCrossAttention(
                dim, num_heads=config.num_heads, tie_projections=config.tie_projections, dropout=config.dropout
            )
        self.gate = ModalityGate((dim, dim)) if config.gate else None
        width = dim if config.route_on == "token" else 2 * dim
        self.expert_norm = _norm(config, width)
        self.experts = _experts(config, width, balance)
        self.head_norm = nn.LayerNorm(2 * dim)
        if config.residual_init == "zero":
            _start_as_identity(self)
        self.dropout = nn.Dropout(config.dropout)
        self.head = TaskHead(2 * dim, num_classes, task)
        self.null_image = nn.init.trunc_normal_(nn.Parameter(torch.zeros(1, 1, dim)), std=0.02)
        self.slice_stream = None
        if config.slices is not None:
            self.slice_stream = SliceStream(config.slices, dim, patches=config.slice_tokens == "patches")

    def architecture(self) -> dict[str, Any]:
        """See :meth:`HubModel.architecture`."""
        sizes = {"num_classes": self.num_classes, "task": self.task, "balance": self.balance}
        return {"image": self.image_encoder.spec.to_json(), **sizes}

    @classmethod
    def from_architecture(
        cls, config: ModelConfig, about: dict[str, Any], text_encoder: TextEncoder | None
    ) -> "MedVLMoE":
        """See :meth:`HubModel.from_architecture`."""
        image_encoder = ImageEncoder.from_spec(ImageEncoderSpec.from_json(about["image"]))
        return cls(config, image_encoder, text_encoder, about["num_classes"], about["task"], about["balance"])

    def forward(
        self,
        images: Tensor,
        input_ids: Tensor,
        text_mask: Tensor,
        image_mask: Tensor | None = None,
        *,
        need_attention: bool = False,
    ) -> Diagnosis:
        """Diagnoses a batch.

        Args:
            images: ``(B, 3, size, size)``, normalised; with ``config.slices`` volumes ``(B, S, 3, size, size)``.
            input_ids: ``(B, N)`` token ids.
            text_mask: ``(B, N)``, True for tokens of a text; a row without any is a study without text.
            image_mask: ``(B,)``, False for a study without image, whose slot of ``images`` is not read; all have one by
                default. The variant ``vision-only`` has nothing else to read, and takes none.
                Of volumes ``(B, S)``, True for slices; a study without any has no image.
            need_attention: Whether to return the attention over patches; of volumes there is none.

        Raises:
            ValueError: If ``vision-only`` gets an ``image_mask`` of images.
        """
        if self.config.variant == "vision-only":
            return Diagnosis(self.head(self._summary(images, image_mask)))
        image, image_mask = self._image(images, image_mask)
        text, text_mask = self._text(input_ids, text_mask, image)
        fused = self._fuse(image, text, image_mask, text_mask, need_attention and images.ndim == 4)
        stats = routing = routed = None
        if self.config.route_on == "token":
            fused, stats, routing, routed = self._route_tokens(fused)
        features = self._pool(fused)
        if self.config.route_on == "study":
            features, stats, routing = self._route_studies(features)
        return Diagnosis(self.head(self.dropout(self.head_norm(features))), stats, routing, routed, fused.attention)

    def _summary(self, images: Tensor, mask: Tensor | None) -> Tensor:
        """Returns what `vision-only` classifies: the summary of the image, or the mean of those of the slices."""
        if images.ndim == 5:
            slices = torch.ones(images.shape[:2], dtype=torch.bool, device=images.device) if mask is None else mask
            return mean_of_slices(encode_slices(self.image_encoder, images, slices), slices)
        if mask is not None:
            raise ValueError("image_mask must be None for the variant vision-only, which reads nothing but images.")
        return self.image_encoder(images).summary

    def _image(self, images: Tensor, present: Tensor | None) -> tuple[Tensor, Tensor]:
        """Returns image tokens in the common space after the null token, which is real where nothing else is."""
        if self.slice_stream is not None:
            mask = torch.ones(images.shape[:2], dtype=torch.bool, device=images.device) if present is None else present
            encoded = encode_slices(self.image_encoder, images, mask)
            image, mask = self.slice_stream(encoded, mask, self.image_projection, self.image_position)
            return with_null(self.null_image, image, mask)
        if present is None:
            present = torch.ones(images.shape[0], dtype=torch.bool, device=images.device)
        else:
            images = fill_missing(images, present)
        encoded = self.image_encoder(images)
        if self.config.cross_attention == "summary":
            image = self.image_projection(encoded.summary).unsqueeze(1) + self.image_position.mean(1, keepdim=True)
        else:
            image = self.image_projection(encoded.patches) + self.image_position
        return with_null(self.null_image, image, present.unsqueeze(1).expand(image.shape[:2]))

    def _text(self, input_ids: Tensor, mask: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """Returns text tokens in the common space after the null token, which is real where nothing else is."""
        if self.text_encoder is None:
            nothing = image[:, :0]
            return with_null(self.null_text, nothing, nothing.new_zeros(nothing.shape[:2], dtype=torch.bool))
        # A study without text still goes through the encoder with one token, unread: causal attention over
        # nothing at all is not defined.
        seen = mask.clone()
        seen[:, 0] |= ~mask.any(1)
        states = self.text_projection(self.text_encoder(input_ids, seen.long()))
        states = states + self.text_position[:, : states.shape[1]]
        if self.config.cross_attention == "summary":
            states = POOLINGS[self.config.text_pooling](states, seen).unsqueeze(1)
            mask = mask.any(1, keepdim=True)
        return with_null(self.null_text, states.to(image.dtype), mask)

    def _fuse(self, image: Tensor, text: Tensor, image_mask: Tensor, text_mask: Tensor, need_attention: bool) -> Fused:
        if self.config.variant == "no-fusion":
            return Fused(image, text, image_mask, text_mask, None)
        crossed = self.fusion(
            self.image_norm(image),
            self.text_norm(text),
            left_mask=image_mask,
            right_mask=text_mask,
            need_weights=need_attention,
        )
        if self.config.residual:
            image, text = image + crossed.left, text + crossed.right
        else:
            image, text = crossed.left, crossed.right
        attention = None
        if crossed.right_weights is not None:
            attention = masked_mean(crossed.right_weights.mean(1), text_mask)[:, 1:]
        return Fused(image, text, image_mask, text_mask, attention)

    def _pool(self, fused: Fused) -> Tensor:
        text = POOLINGS[self.config.text_pooling](fused.text, fused.text_mask)
        features = torch.cat([masked_mean(fused.image, fused.image_mask), text.to(fused.image.dtype)], dim=-1)
        return features if self.gate is None else self.gate(features).output

    def _route_studies(self, features: Tensor) -> tuple[Tensor, RouterStats | None, Routing | None]:
        normed = self.expert_norm(features)
        if not isinstance(self.experts, SparseMoE):
            output, stats, routing = self.experts(normed), None, None
        else:
            routing = self.experts.route(normed)
            output, stats = self.experts(normed, routing=routing)
        return (features + output if self.config.residual else output), stats, routing

    def _route_tokens(self, fused: Fused) -> tuple[Fused, RouterStats | None, Routing | None, Tensor]:
        tokens = torch.cat([fused.image, fused.text], dim=1)
        mask = torch.cat([fused.image_mask, fused.text_mask], dim=1)
        normed = self.expert_norm(tokens)
        if not isinstance(self.experts, SparseMoE):
            output, stats, routing = self.experts(normed), None, None
        else:
            routing = self.experts.route(normed, mask=mask)
            output, stats = self.experts(normed, mask=mask, routing=routing)
        tokens = tokens + output if self.config.residual else output
        image, text = tokens.split([fused.image.shape[1], fused.text.shape[1]], dim=1)
        return fused._replace(image=image, text=text), stats, routing, mask


def reads_text(config: ModelConfig) -> bool:
    """Tells whether a diagnosis is read from texts too."""
    return config.classifier != "zero-shot" and config.variant not in ("no-text", "vision-only")


def takes_text(model: nn.Module) -> bool:
    """Tells whether a model that was built reads texts: it has a text encoder, and not for prompts alone."""
    return model.text_encoder is not None and reads_text(model.config)


def has_experts(config: ModelConfig) -> bool:
    """Tells whether the model has a sparse layer."""
    return config.classifier == "medvlmoe" and config.variant not in ("no-moe", "single-ffn", "vision-only")


def check_router(config: ModelConfig, balance: Balance) -> None:
    """Refuses ways to balance that the router does not have.

    Raises:
        ValueError: Naming the options.
    """
    dynamic = config.router == "dynamic"
    if dynamic and balance in ("cv2", "bias", "fitted"):
        raise ValueError(
            f"balance (--balance) {balance!r} does not go with router (--router) 'dynamic', which has no noise and no "
            "selection bias: use dynamic or switch."
        )
    if balance == "dynamic" and not dynamic:
        raise ValueError(
            f"balance (--balance) 'dynamic' does not go with router (--router) {config.router!r}: use it with dynamic."
        )


def _norm(config: ModelConfig, dim: int) -> nn.Module:
    return nn.LayerNorm(dim) if config.residual else nn.Identity()


def _start_as_identity(model: MedVLMoE) -> None:
    """Sets what ends the residual branches of fusion and experts to zero, so that both start as the identity.

    Raises:
        ValueError: If there are no residual connections: all that follows would be zero.
    """
    if not model.config.residual:
        raise ValueError(
            "residual_init (--residual-init) 'zero' needs residual connections: leave --no-residual out, or use random."
        )
    last = [] if model.config.variant == "no-fusion" else [model.fusion.left_output, model.fusion.right_output]
    experts = model.experts.experts if isinstance(model.experts, SparseMoE) else model.experts
    assert isinstance(experts, FFNExperts | FFN)
    ends = [parameter for layer in last if layer is not None for parameter in layer.parameters()]
    ends += [experts.down_proj] if isinstance(experts, FFNExperts) else list(experts.down_proj.parameters())
    for parameter in ends:
        nn.init.zeros_(parameter)


def _experts(config: ModelConfig, width: int, balance: Balance) -> nn.Module:
    """Builds two-layer MLPs behind a router, or, without experts, one for all.

    The one of `no-moe` multiplies as often as the ``K`` experts of a decision do; that of `single-ffn` has one expert's
    size, and so a ``K``-th of the multiplications.
    """
    if not has_experts(config):
        experts_at_work = config.top_k if config.variant == "no-moe" else 1
        return FFN(width, experts_at_work * config.expert_hidden_dim, activation="gelu", bias=True)
    check_router(config, balance)
    if config.router == "dynamic":
        router: Router = DynamicTopKRouter(width, config.num_experts, config.top_k, mass=config.mass)
    else:
        router = TopKRouter(
            width,
            config.num_experts,
            config.top_k,
            noisy=balance == "cv2",
            selection_bias=balance in ("bias", "fitted"),
        )
    experts = FFNExperts(
        width, config.expert_hidden_dim, config.num_experts, activation="gelu", bias=True, init_scale=1.0
    )
    return SparseMoE(router, experts)
