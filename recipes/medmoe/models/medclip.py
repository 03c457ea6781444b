"""MedCLIP: ``pytorch_model.bin`` of its Swin or its ResNet, or the folder that holds it.

Names (RyanWangZf/MedCLIP, ``medclip/modeling_medclip.py``): ``vision_model.model.*`` is a Swin of transformers with
``vision_model.projection_head.weight`` after its pooled output, or torchvision's ResNet whose ``fc`` is the projection;
``text_model.model.*`` is Bio_ClinicalBERT, ``text_model.projection_head.weight`` its projection; ``logit_scale``.

- Images: grey, black around to a square of at least 224 pixels, then 224 (bicubic), one mean and deviation.
- Texts: at most 77 tokens. The embedding is the mean of layers 1, 2 and the last over **all** places, padding included:
  it depends on what a text is padded to, here as there the longest of a call.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path

from timm.models.swin_transformer import SwinTransformer
from torch import Tensor, nn
from torchvision.models.resnet import ResNet

from recipes.medmoe.data.tokens import Tokens
from recipes.medmoe.features import ImageFeatures, TextFeatures
from recipes.medmoe.models.adapter import ProjectedTowers, bare_linear, clamped_scale, image_features, text_features
from recipes.medmoe.models.bert import BertTexts, build_bert, layer_mean, load_tokenizer
from recipes.medmoe.models.checkpoints import load_parts, read_state
from recipes.medmoe.models.preprocess import Preprocess
from recipes.medmoe.models.resnet import build_resnet, resnet_maps
from recipes.shared.encoders import medclip

HUB_TOWER = "emilyalsentzer/Bio_ClinicalBERT"
LONGEST = 77
SIZE = 224
_VISION, _TEXT = "vision_model.", "text_model."


class MedClipAdapter(ProjectedTowers):
    """MedCLIP: a Swin, or a ResNet whose ``fc`` is the projection, and BERT; see the module."""

    notes = ("MedCLIP's embedding of a text depends on its padding: that of a call's longest text.",)
    preprocess = Preprocess(SIZE, medclip.MEDCLIP_MEAN, medclip.MEDCLIP_STD, "pad-then-resize", grey=True)

    @classmethod
    def load(cls, place: str, text_tower: Path | None = None, tokenizer: Path | None = None) -> "MedClipAdapter":
        """Loads MedCLIP; see :func:`~recipes.medmoe.models.load.load_adapter`.

        Args:
            place: The file, or its folder.
            text_tower: Folder with the ``config.json`` of Bio_ClinicalBERT.
            tokenizer: Folder of the tokenizer; the text tower's by default.
        """
        what, path = f"model medclip:{place}", Path(place)
        state = read_state(path / "pytorch_model.bin" if path.is_dir() else path)
        is_swin = medclip.is_hugging_face_swin(state)
        name = f"{_VISION}projection_head.weight" if is_swin else f"{_VISION}model.fc.weight"
        if any(state.get(one) is None for one in (name, f"{_TEXT}projection_head.weight", "logit_scale")):
            raise ValueError(f"{what} is none of MedCLIP's files: it lacks {name}, or what texts need (--model).")
        projection = bare_linear(state[name])
        text_projection = bare_linear(state[f"{_TEXT}projection_head.weight"])
        text = build_bert(HUB_TOWER, text_tower, pooler=f"{_TEXT}model.pooler.dense.weight" in state)
        parts: dict[str, nn.Module] = {f"{_TEXT}model.": text, f"{_TEXT}projection_head.": text_projection}
        if is_swin:
            image: SwinTransformer | ResNet = _swin(state)
            towers = {f"{_VISION}model.{name}": value for name, value in medclip.to_timm(state).items()}
            others = {name: value for name, value in state.items() if not name.startswith(f"{_VISION}model.")}
            state = {**others, **towers}
            parts |= {f"{_VISION}model.": image, f"{_VISION}projection_head.": projection}
        else:
            image = build_resnet(state, f"{_VISION}model.", projection)
            parts[f"{_VISION}model."] = image
        load_parts(state, parts, what, ignored=("logit_scale",))
        texts = BertTexts(load_tokenizer(HUB_TOWER, text_tower, tokenizer), LONGEST)
        scale = clamped_scale(state["logit_scale"])
        return cls(image, projection, text, text_projection, texts, scale)

    def encode_images(self, images: Tensor) -> ImageFeatures:
        """See :class:`Adapter`."""
        if isinstance(self.image, ResNet):
            places = resnet_maps(self.image, images).last.permute(0, 2, 3, 1)
        else:
            places = self.image.forward_features(images)
        pooled = places.mean((1, 2))
        return image_features(pooled, self.projection(pooled), self.projection(places).permute(0, 3, 1, 2))

    def encode_texts(self, tokens: Tokens) -> TextFeatures:
        """See :class:`Adapter`."""
        states = layer_mean(self.text, tokens)
        return text_features(tokens, self.text_projection(states.mean(1)), self.text_projection(states))


def _swin(state: Mapping[str, Tensor]) -> SwinTransformer:
    """Builds timm's Swin as large as a file of transformers says, at 224 pixels."""
    tables = {
        (int(match[1]), int(match[2])): value
        for name, value in state.items()
        if (match := re.search(r"layers\.(\d+)\.blocks\.(\d+)\..*relative_position_bias_table$", name))
    }
    stages = max(stage for stage, _ in tables) + 1
    depths = tuple(sum(1 for stage, _ in tables if stage == one) for one in range(stages))
    heads = tuple(tables[one, 0].shape[1] for one in range(stages))
    window = (math.isqrt(len(tables[0, 0])) + 1) // 2
    width = next(value for name, value in state.items() if name.endswith("patch_embeddings.projection.weight"))
    return SwinTransformer(
        img_size=SIZE,
        patch_size=width.shape[2],
        embed_dim=width.shape[0],
        depths=depths,
        num_heads=heads,
        window_size=window,
        num_classes=0,
    )
