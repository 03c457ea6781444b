"""CLIP of transformers from a folder (``save_pretrained``) or a hub: CLIP, PubMedCLIP.

Regions and words as in :mod:`recipes.medmoe.models.open_clip`.
"""

from pathlib import Path
from typing import Any

from torch import Tensor

from recipes.medmoe.data.tokens import Tokens
from recipes.medmoe.features import ImageFeatures, TextFeatures
from recipes.medmoe.models.adapter import Adapter, image_features, text_features
from recipes.medmoe.models.bert import BertTexts
from recipes.medmoe.models.preprocess import Preprocess
from recipes.shared.encoders.hub import loading

REMEDY = (
    "Give a folder with the model, its tokenizer and its preprocessor_config.json (--model transformers:FOLDER); "
    "--tokenizer names another folder for the tokenizer."
)
_FILTERS = {2: "bilinear", 3: "bicubic"}


class TransformersClipAdapter(Adapter):
    """A ``CLIPModel``.

    Args:
        model: The model.
        tokenizer: A fast tokenizer.
        images: Its image processor.
    """

    def __init__(self, model: Any, tokenizer: Any, images: Any) -> None:
        super().__init__()
        self.model = model
        self.texts = BertTexts(tokenizer, model.config.text_config.max_position_embeddings)
        self.preprocess = _preprocess(images)
        self.scale = float(model.logit_scale.detach().exp())

    @classmethod
    def load(
        cls, place: str, text_tower: Path | None = None, tokenizer: Path | None = None
    ) -> "TransformersClipAdapter":
        """Loads a model; see :func:`~recipes.medmoe.models.load.load_adapter`.

        Args:
            place: A folder, or an id of a hub.
            text_tower: None, since the model brings its own.
            tokenizer: Folder of the tokenizer; the model's by default.
        """
        from transformers import AutoTokenizer, CLIPConfig, CLIPImageProcessor, CLIPModel

        what = f"model transformers:{place}"
        if text_tower is not None:
            raise ValueError(f"{what} has a text tower of its own: leave out --text-tower.")
        with loading(what, REMEDY):
            config = CLIPConfig.from_pretrained(place, trust_remote_code=False)
            if config.model_type != "clip":
                raise ValueError(f"{what} is a model of type {config.model_type!r}, expected 'clip'.")
            model, info = CLIPModel.from_pretrained(place, config=config, output_loading_info=True)
            texts = AutoTokenizer.from_pretrained(tokenizer or place, trust_remote_code=False)
            images = CLIPImageProcessor.from_pretrained(place)
        wrong = {name: sorted(map(str, info[name])) for name in ("missing_keys", "unexpected_keys", "mismatched_keys")}
        if any(wrong.values()):
            told = "; ".join(f"{name.replace('_', ' ')} {keys[:3]}" for name, keys in wrong.items() if keys)
            raise ValueError(f"{what} does not hold the weights of its configuration: {told}.")
        return cls(model, texts, images)

    def encode_images(self, images: Tensor) -> ImageFeatures:
        """See :class:`Adapter`."""
        output = self.model.vision_model(pixel_values=images)
        project = self.model.visual_projection
        patches = project(self.model.vision_model.post_layernorm(output.last_hidden_state[:, 1:]))
        side = round(patches.shape[1] ** 0.5)
        regions = patches.mT.unflatten(2, (side, side))
        return image_features(output.pooler_output, project(output.pooler_output), regions)

    def encode_texts(self, tokens: Tokens) -> TextFeatures:
        """See :class:`Adapter`."""
        output = self.model.text_model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask.long())
        project = self.model.text_projection
        return text_features(tokens, project(output.pooler_output), project(output.last_hidden_state))


def _preprocess(images: Any) -> Preprocess:
    resize, crop = images.size, images.crop_size
    side = crop["height"] if images.do_center_crop else resize["height"]
    mean, std = tuple(map(float, images.image_mean)), tuple(map(float, images.image_std))
    if "shortest_edge" not in resize and not resize.get("shortest_edge"):
        return Preprocess(side, mean, std, "squash", interpolation=_FILTERS[int(images.resample)])
    return Preprocess(side, mean, std, "crop", resize["shortest_edge"], _FILTERS[int(images.resample)], cut_down=True)
