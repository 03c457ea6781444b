"""KeepFIT and FLAIR, whose layout it keeps: one file of weights.

Names (lxirich/MM-Retinal, ``KeepFIT/KeepFIT-CFP/keepfit/modeling/model.py``; jusiro/FLAIR,
``flair/modeling/model.py``):
``vision_model.model.*`` is torchvision's ResNet without its last layer,
``vision_model.projection_head_vision.projection.weight`` its projection; ``text_model.model.*`` is Bio_ClinicalBERT,
``text_model.projection_head_text.projection.weight`` its projection; ``logit_scale``. KeepFIT has ``attention.W_*``
besides, which its inference does not use.

- Images: 512 pixels on the longer side, black to the right and below, divided by 255, neither mean nor deviation.
- Texts: at most 256 tokens; layers 1, 2 and the last, averaged over all places with padding, as MedCLIP does.
- Both are brought to length 1 before their projection and after it.
"""

from pathlib import Path

import torch.nn.functional as F
from torch import Tensor

from recipes.medmoe.data.tokens import Tokens
from recipes.medmoe.features import ImageFeatures, TextFeatures
from recipes.medmoe.models.adapter import ProjectedTowers, bare_linear, clamped_scale, image_features, text_features
from recipes.medmoe.models.bert import BertTexts, build_bert, layer_mean, load_tokenizer
from recipes.medmoe.models.checkpoints import load_parts, read_state
from recipes.medmoe.models.preprocess import Preprocess
from recipes.medmoe.models.resnet import build_resnet, resnet_maps

HUB_TOWER = "emilyalsentzer/Bio_ClinicalBERT"
LONGEST = 256
SIZE = 512
_VISION_HEAD = "vision_model.projection_head_vision.projection."
_TEXT_HEAD = "text_model.projection_head_text.projection."


class KeepFitAdapter(ProjectedTowers):
    """KeepFIT: torchvision's ResNet and BERT; see the module."""

    notes = ("KeepFIT's embedding of a text depends on its padding: that of a call's longest text.",)
    preprocess = Preprocess(SIZE, how="corner", interpolation="bilinear")

    @classmethod
    def load(cls, place: str, text_tower: Path | None = None, tokenizer: Path | None = None) -> "KeepFitAdapter":
        """Loads KeepFIT or FLAIR; see :func:`~recipes.medmoe.models.load.load_adapter`.

        Args:
            place: The file.
            text_tower: Folder with the ``config.json`` of Bio_ClinicalBERT.
            tokenizer: Folder of the tokenizer; the text tower's by default.
        """
        what = f"model keepfit:{place}"
        state = read_state(Path(place))
        heads = [state.get(f"{name}weight") for name in (_VISION_HEAD, _TEXT_HEAD)]
        if any(head is None for head in heads) or "logit_scale" not in state:
            raise ValueError(f"{what} is no file of KeepFIT or FLAIR: it lacks {_VISION_HEAD}weight (--model).")
        image = build_resnet(state, "vision_model.model.")
        projection, text_projection = (bare_linear(head) for head in heads)
        text = build_bert(HUB_TOWER, text_tower, pooler="text_model.model.pooler.dense.weight" in state)
        parts = {
            "vision_model.model.": image,
            _VISION_HEAD: projection,
            "text_model.model.": text,
            _TEXT_HEAD: text_projection,
        }
        load_parts(state, parts, what, ignored=("logit_scale", "attention.W_"))
        texts = BertTexts(load_tokenizer(HUB_TOWER, text_tower, tokenizer), LONGEST)
        scale = clamped_scale(state["logit_scale"])
        return cls(image, projection, text, text_projection, texts, scale)

    def encode_images(self, images: Tensor) -> ImageFeatures:
        """See :class:`Adapter`."""
        places = resnet_maps(self.image, images).last.permute(0, 2, 3, 1)
        pooled = places.mean((1, 2))
        embedding = self.projection(F.normalize(pooled, dim=-1))
        regions = self.projection(F.normalize(places, dim=-1)).permute(0, 3, 1, 2)
        return image_features(pooled, embedding, regions)

    def encode_texts(self, tokens: Tokens) -> TextFeatures:
        """See :class:`Adapter`."""
        states = layer_mean(self.text, tokens)
        embedding = self.text_projection(F.normalize(states.mean(1), dim=-1))
        return text_features(tokens, embedding, self.text_projection(F.normalize(states, dim=-1)))
