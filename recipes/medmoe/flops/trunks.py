"""The image towers of Table 3's baselines, built on the meta device: no weights, no files."""

from collections.abc import Callable
from dataclasses import dataclass

import timm
import torch
from torch import nn

from recipes.medmoe.flops.conventions import Convention
from recipes.shared.extras import require

SIZE = 224
"""Side of the input of all of them, in pixels."""

_NO_TEXT = {"context_length": 2, "vocab_size": 2, "width": 8, "heads": 1, "layers": 1}
_BIOMED = {
    "timm_model_name": "vit_base_patch16_224",
    "timm_model_pretrained": False,
    "timm_pool": "",
    "timm_proj": "linear",
    "image_size": SIZE,
}


@dataclass(frozen=True)
class Trunk:
    """An image tower of the table.

    Attributes:
        name: Of its row.
        what: What is counted.
        build: Builds it on the meta device.
        convention: The one that yields the paper's figure.
        paper_params: Millions of parameters, as printed.
        paper_gmacs: Operations in G, as printed; they are multiply-adds.
    """

    name: str
    what: str
    build: Callable[[], nn.Module]
    convention: Convention
    paper_params: str
    paper_gmacs: str


def _clip(architecture: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        library = require("open_clip", "the image tower of CLIP", extra="openclip")
        config = library.get_model_config(architecture)
        with torch.device("meta"):
            return library.CLIP(config["embed_dim"], config["vision_cfg"], dict(_NO_TEXT), quick_gelu=True).visual

    return build


def _biomedclip() -> nn.Module:
    library = require("open_clip", "the image tower of BiomedCLIP", extra="openclip")
    with torch.device("meta"):
        return library.CustomTextCLIP(512, dict(_BIOMED), dict(_NO_TEXT)).visual


def _swin() -> nn.Module:
    with torch.device("meta"):
        return timm.create_model("swin_tiny_patch4_window7_224", num_classes=0)


TRUNKS = (
    Trunk("CLIP RN50", "CLIP's ResNet-50 with its attention pooling", _clip("RN50"), "fvcore", "38.3", "6.12"),
    Trunk("BiomedCLIP", "ViT-B/16 of timm, with its projection", _biomedclip, "modules", "86.1", "16.8"),
    Trunk(
        "UniMed-CLIP",
        "ViT-B/16 with nn.MultiheadAttention, with its projection",
        _clip("ViT-B-16-quickgelu"),
        "modules",
        "86.1",
        "11.29",
    ),
    Trunk("MedCLIP", "Swin-T, without its projection", _swin, "fvcore", "27", "4.5"),
)
"""In the paper's order."""
