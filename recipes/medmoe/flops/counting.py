"""Counts parameters and operations of the image side by two counters, and the experts that run as they are observed."""

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from moekit import CrossScaleExpert
from recipes.medmoe.config import ModelConfig
from recipes.medmoe.features import ImageFeatures, TextFeatures
from recipes.medmoe.model import MedMoE
from recipes.shared.encoders.pyramid import PyramidEncoder
from recipes.shared.encoders.text import TINY, TINY_BERT
from recipes.shared.extras import require

TOLERANCE = 0.01
"""Largest relative difference between the two counters that passes without a mark."""

SWIN = "swin_tiny_patch4_window7_224"
# What fvcore counts besides (norms, resizing) torch's counter leaves out.
_FVCORE_OPERATORS = ("conv", "linear", "matmul", "addmm", "bmm", "baddbmm", "einsum")
_TINY_TEXT_DIM, _BERT_BASE_DIM = 128, 768


@dataclass(frozen=True)
class Row:
    """One model of the table.

    Attributes:
        name: What was counted.
        params_total: Parameters of all experts and the rest.
        params_active: Parameters that take part in the computation of one image.
        gmacs: Billions of multiply-adds, by ``torch.utils.flop_counter``.
        flops: Operations, two per multiply-add.
        experts_run: Experts that computed something for the image, as observed.
        experts_active: Experts whose output was used.
        fvcore_gmacs: Billions of multiply-adds, by fvcore.
        difference: Relative difference between the counters.
        counters_agree: Whether that is at most :data:`TOLERANCE`.
    """

    name: str
    params_total: int
    params_active: int
    gmacs: float
    flops: int
    experts_run: int
    experts_active: int
    fvcore_gmacs: float
    difference: float
    counters_agree: bool


class ImageSide(nn.Module):
    """From images to embedding and regions: encoder, projection, router, experts, projection of the regions.

    Args:
        model: The model; of its text side only the router's width counts, where it routes on text.
        run_all: Whether every expert runs for every image, as in the public release, and one output is taken.
    """

    def __init__(self, model: MedMoE, *, run_all: bool) -> None:
        super().__init__()
        parts = ["image_encoder", "image_projection", "moe", "region_projection"]
        parts += [] if model.config.route_on == "label" else ["router_norm"]
        self.parts = nn.ModuleDict({name: model.get_submodule(name) for name in parts})
        self.run_all = run_all
        self._model = [model]  # in a list, so that the text side is no part of this module
        # What is counted is what runs: while a counter traces, "auto" would take the form of static shapes.
        model.moe.experts.batching = "loop"

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Encodes ``(B, 3, size, size)`` into ``(B, D)`` and ``(B, D, h, w)``."""
        model = self._model[0]
        image = model.encode_images(images)
        routing = model.route(image=image, text=_blank_text(model, image), labels=images.new_zeros(len(images)).long())
        if not self.run_all:
            return image.embedding, model.local(image, routing).regions
        maps = model.moe.experts.run_all(image.maps)
        chosen = maps[torch.arange(len(maps)), routing.expert_ids[:, 0]] * routing.gates[:, :, None, None]
        return image.embedding, model.region_projection(chosen)


def table(model: MedMoE) -> list[Row]:
    """Counts the encoder alone, the image side, and the image side with all experts run.

    Args:
        model: In eval mode, on the CPU.
    """
    encoder = model.image_encoder
    images = torch.zeros(1, 3, encoder.spec.size, encoder.spec.size)
    return [
        _count(_name(encoder), encoder, images),
        _count("medmoe (ours)", ImageSide(model, run_all=False), images),
        _count("medmoe, all experts run", ImageSide(model, run_all=True), images),
    ]


def _count(name: str, module: PyramidEncoder | ImageSide, images: Tensor) -> Row:
    run: list[CrossScaleExpert] = []
    with FlopCounterMode(display=False) as counter:
        total, active = active_parameters(module, images, run)
    flops = counter.get_total_flops()
    fvcore_macs = _fvcore_macs(module, images)
    difference = abs(2 * fvcore_macs - flops) / flops
    return Row(
        name=name,
        params_total=total,
        params_active=active,
        gmacs=flops / 2e9,
        flops=flops,
        experts_run=len(run),
        experts_active=min(len(run), 1),  # a hard router keeps one output
        fvcore_gmacs=fvcore_macs / 1e9,
        difference=difference,
        counters_agree=difference <= TOLERANCE,
    )


def active_parameters(module: nn.Module, images: Tensor, run: list[CrossScaleExpert] | None = None) -> tuple[int, int]:
    """Counts parameters in all, and those that take part in a forward pass, by observing which experts run.

    Args:
        module: In eval mode.
        images: What it is called with.
        run: The experts that ran are appended to it.
    """
    run = [] if run is None else run
    experts = [part for part in module.modules() if isinstance(part, CrossScaleExpert)]
    hooks = [expert.register_forward_hook(lambda expert, *_: run.append(expert)) for expert in experts]
    with torch.no_grad():
        module(images)
    for hook in hooks:
        hook.remove()
    total = sum(parameter.numel() for parameter in module.parameters())
    idle = sum(parameter.numel() for expert in experts if expert not in run for parameter in expert.parameters())
    return total, total - idle


def _fvcore_macs(module: nn.Module, images: Tensor) -> int:
    """Counts the same by fvcore, which reads a traced graph and calls a multiply-add one flop."""
    with warnings.catch_warnings():
        # fvcore uses torch.jit, which recent versions of torch call deprecated.
        warnings.simplefilter("ignore")
        analysis = require("fvcore.nn", "counting operations twice").FlopCountAnalysis(module, images)
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
        by_operator = analysis.by_operator()
    return int(sum(by_operator[operator] for operator in _FVCORE_OPERATORS))


def _name(encoder: PyramidEncoder) -> str:
    architecture = encoder.spec.architecture
    return "swin-t alone" if architecture == SWIN else f"{architecture} alone"


class NoText(nn.Module):
    """Stands in for the text encoder, of which the image side needs no more than the width of a text's vector."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.dim = _TINY_TEXT_DIM if config.text_encoder in (TINY, TINY_BERT) else _BERT_BASE_DIM


def _blank_text(model: MedMoE, image: ImageFeatures) -> TextFeatures:
    """Returns texts without words, for a router that reads texts: their vectors come from elsewhere, at no cost."""
    batch, like = len(image.pooled), image.pooled
    words = like.new_zeros(batch, 0, model.config.dim)
    mask = like.new_zeros(batch, 0, dtype=torch.bool)
    pooled = like.new_zeros(batch, model.text_encoder.dim)
    return TextFeatures(words, mask, like.new_zeros(batch, model.config.dim), pooled)
