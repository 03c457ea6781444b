"""PMC-CLIP: the folder of ``image_encoder(resnet50).pth``, ``text_encoder.pth`` and ``text_projection_layer.pth``.

Names (WeixiongLin/PMC-CLIP, ``src/pmc_clip/model/blocks.py``): the first is CLIP's ``ModifiedResNet``, the second
PubMedBERT, the third a bare matrix. Images are those of CLIP. Texts are padded to 77 tokens and read **without a
mask**; the embedding is the last layer's first token (``model/pmc_clip.py``, ``encode_text``). A script that is widely
copied takes BERT's ``pooler_output`` instead; the original is followed here.
"""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BertModel

from recipes.medmoe.data.tokens import Tokens
from recipes.medmoe.features import ImageFeatures, TextFeatures
from recipes.medmoe.models.adapter import Adapter, text_features
from recipes.medmoe.models.bert import BertTexts, build_bert, load_tokenizer
from recipes.medmoe.models.checkpoints import load_parts, read_state, read_tensors
from recipes.medmoe.models.open_clip import of_clip_resnet
from recipes.medmoe.models.preprocess import Preprocess
from recipes.medmoe.models.unimed import CLIP_MEAN, CLIP_STD
from recipes.shared.extras import require

HUB_TOWER = "microsoft/BiomedNLP-PubMedBERT-base-uncased-abstract-fulltext"
IMAGE, TEXT, PROJECTION = "image_encoder(resnet50).pth", "text_encoder.pth", "text_projection_layer.pth"
LONGEST = 77
SCALE = math.exp(4.4292)
"""Of the published training; none of the three files holds it."""


class PmcClipAdapter(Adapter):
    """PMC-CLIP; see the module.

    Args:
        image: A ``ModifiedResNet`` of open_clip.
        text: The BERT.
        projection: ``(D_t, D)``.
        texts: Its tokenizer.
        size: Side of the input, in pixels.
    """

    scale = SCALE

    def __init__(self, image: nn.Module, text: BertModel, projection: Tensor, texts: BertTexts, size: int) -> None:
        super().__init__()
        self.image, self.text, self.texts = image, text, texts
        self.register_buffer("projection", projection)
        self.preprocess = Preprocess(size, CLIP_MEAN, CLIP_STD, "crop")

    @classmethod
    def load(cls, place: str, text_tower: Path | None = None, tokenizer: Path | None = None) -> "PmcClipAdapter":
        """Loads PMC-CLIP; see :func:`~recipes.medmoe.models.load.load_adapter`.

        Args:
            place: The folder.
            text_tower: Folder with the ``config.json`` of PubMedBERT.
            tokenizer: Folder of the tokenizer; the text tower's by default.
        """
        what, folder = f"model pmc-clip:{place}", Path(place)
        state, text_state = read_state(folder / IMAGE), read_state(folder / TEXT)
        projection = read_tensors(folder / PROJECTION)
        if not isinstance(projection, Tensor) or projection.ndim != 2:
            raise ValueError(
                f"{folder / PROJECTION} holds no matrix, expected one of shape (text width, common width)."
            )
        image, size = _resnet(state, what)
        load_parts(state, {"": image}, f"{what}, {IMAGE},")
        text = build_bert(HUB_TOWER, text_tower, pooler="pooler.dense.weight" in text_state)
        load_parts(text_state, {"": text}, f"{what}, {TEXT},")
        widths = (text.config.hidden_size, state["attnpool.c_proj.weight"].shape[0])
        if tuple(projection.shape) != widths:
            raise ValueError(f"{folder / PROJECTION} has shape {tuple(projection.shape)}, expected {widths}.")
        texts = BertTexts(load_tokenizer(HUB_TOWER, text_tower, tokenizer), LONGEST, padded=True)
        return cls(image, text, projection.detach().float(), texts, size)

    def encode_images(self, images: Tensor) -> ImageFeatures:
        """See :class:`Adapter`."""
        return of_clip_resnet(self.image, images)

    def encode_texts(self, tokens: Tokens) -> TextFeatures:
        """See :class:`Adapter`."""
        every = torch.ones_like(tokens.input_ids)  # padding is read, as the original reads it
        states = self.text(tokens.input_ids, attention_mask=every).last_hidden_state @ self.projection
        return text_features(tokens, states[:, 0], states)


def _resnet(state: dict[str, Tensor], what: str) -> tuple[Any, int]:
    """Builds CLIP's ResNet as large as a file says; returns it and the side of its input."""
    library = require("open_clip", "PMC-CLIP", extra="openclip")
    try:
        width = state["layer1.0.conv1.weight"].shape[0]
        embed_dim = state["attnpool.c_proj.weight"].shape[0]
        side = 32 * math.isqrt(len(state["attnpool.positional_embedding"]) - 1)
    except KeyError as error:
        raise ValueError(f"{what}, {IMAGE}, holds no ResNet of CLIP: it lacks {error.args[0]} (--model).") from error
    layers = [len({name.split(".")[1] for name in state if name.startswith(f"layer{one}.")}) for one in range(1, 5)]
    vision = {"image_size": side, "layers": layers, "width": width, "patch_size": None}
    none = {"context_length": 2, "vocab_size": 2, "width": 8, "heads": 1, "layers": 1}
    return library.CLIP(embed_dim, vision, none).visual, side
