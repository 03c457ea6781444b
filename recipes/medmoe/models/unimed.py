"""UniMed-CLIP: a file of its own fork of open_clip.

Names (mbzuai-oryx/UniMed-CLIP, ``src/open_clip/model.py`` and ``hf_model.py``): ``visual.*`` is a ViT with quick GELU,
``text_encoder.transformer.*`` a BERT without pooler, ``text_encoder.proj.{0,2}.weight`` the MLP after its first token,
``logit_scale``; ``module.`` may stand before all. These are the parts of open_clip's ``CustomTextCLIP`` under other
names, so that class is built, as large as the file says. The context is 256 tokens, images are those of CLIP.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from recipes.medmoe.models.bert import remedy
from recipes.medmoe.models.checkpoints import load_parts, read_state
from recipes.medmoe.models.open_clip import HubWords, OpenClipAdapter
from recipes.shared.encoders.hub import loading
from recipes.shared.extras import require

HUB_TOWER = "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract"
CONTEXT = 256
_HEAD = 64
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def load_unimed(place: str, text_tower: Path | None, tokenizer: Path | None) -> OpenClipAdapter:
    """Loads UniMed-CLIP; see :func:`~recipes.medmoe.models.load.load_adapter`.

    Args:
        place: The file, ``unimed_clip_vit_b16.pt``.
        text_tower: Folder with the text tower's ``config.json``.
        tokenizer: Folder of the tokenizer; the text tower's by default.
    """
    library = require("open_clip", "UniMed-CLIP", extra="openclip")
    what = f"model unimed:{place}"
    state = {
        (f"text.{name.removeprefix('text_encoder.')}" if name.startswith("text_encoder.") else name): value
        for name, value in read_state(Path(place)).items()
    }
    with loading(f"the text tower of {what}", remedy(HUB_TOWER)):
        model = library.CustomTextCLIP(**_config(state, what, str(text_tower or HUB_TOWER)))
        words = library.tokenizer.HFTokenizer(str(tokenizer or text_tower or HUB_TOWER), CONTEXT)
    load_parts(state, {"": model}, what, ignored=("text.transformer.pooler.",))
    preprocess = {"mean": CLIP_MEAN, "std": CLIP_STD, "interpolation": "bicubic", "resize_mode": "shortest"}
    side = model.visual.image_size
    size = side if isinstance(side, int) else side[0]
    model.visual.preprocess_cfg = {"size": size, **preprocess}
    return OpenClipAdapter(model, HubWords(words))


def _config(state: Mapping[str, Tensor], what: str, tower: str) -> dict[str, Any]:
    """Returns the sizes of a file as open_clip's configuration."""
    try:
        width, _, patch, _ = state["visual.conv1.weight"].shape
        grid = math.isqrt(len(state["visual.positional_embedding"]) - 1)
        embed_dim = state["visual.proj"].shape[1]
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"{what} holds no ViT as UniMed-CLIP has it: visual.conv1.weight, visual.positional_embedding and "
            "visual.proj are expected (--model)."
        ) from error
    layers = len({name.split(".")[3] for name in state if name.startswith("visual.transformer.resblocks.")})
    vision = {"image_size": grid * patch, "patch_size": patch, "width": width, "layers": layers, "head_width": _HEAD}
    text = {
        "hf_model_name": tower,
        "hf_model_pretrained": False,
        "hf_proj_type": "mlp",
        "hf_pooler_type": "cls_last_hidden_state_pooler",
        "context_length": CONTEXT,
    }
    return {"embed_dim": embed_dim, "vision_cfg": vision, "text_cfg": text, "quick_gelu": True}
