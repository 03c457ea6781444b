"""GLoRIA: ``chexpert_resnet50.ckpt``, a file of Lightning whose pickled settings are not unpickled.

Names (marshuang80/gloria, ``gloria/models/vision_model.py`` and ``text_model.py``), each behind ``gloria.``:
``img_encoder.model.*`` is torchvision's ResNet without its last layer, ``img_encoder.global_embedder.{weight,bias}``
maps its pooled last map and ``img_encoder.local_embedder.weight`` its third stage into the common space;
``text_encoder.model.*`` is Bio_ClinicalBERT. Sizes of inputs are those of ``configs/chexpert_pretrain_config.yaml``.

- Images: grey, the longer side to 256 pixels, black around, 224 cut out, mean and deviation 0.5; then enlarged to 299.
- Texts: sentences of two words and more, letters and digits alone, lower case; at most 97 tokens.
- A token's state is the sum of the last four layers, a word's that of its pieces. A text's embedding is the mean of
  [CLS], its words and [SEP] over 97 places, the empty ones zero, which has the direction of their sum.

Deviations: the original's zero-shot counts the *characters* of a prompt where it needs its words
(``gloria_model.py``, ``cap_lens``), so that [SEP] and empty places take part in its local scores; here words alone do.
It shrinks images by OpenCV's area filter, here Pillow's box filter does.
"""

import re
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import ResNet
from transformers import BertModel

from recipes.medmoe.data.tokens import Tokens
from recipes.medmoe.features import ImageFeatures, TextFeatures
from recipes.medmoe.models.adapter import Adapter, image_features, text_features
from recipes.medmoe.models.bert import BertTexts, build_bert, load_tokenizer
from recipes.medmoe.models.checkpoints import load_parts, read_state
from recipes.medmoe.models.preprocess import Preprocess
from recipes.medmoe.models.resnet import build_resnet, resnet_maps

HUB_TOWER = "emilyalsentzer/Bio_ClinicalBERT"
LAST_LAYERS = 4
LONGEST = 97
ENLARGED = 299
"""Side to which the model itself enlarges its input, in pixels."""
_HALF = (0.5, 0.5, 0.5)


class GloriaAdapter(Adapter):
    """GLoRIA; see the module.

    Args:
        image: The ResNet.
        global_embedder: Of the pooled map.
        local_embedder: Of the third stage.
        text: The BERT.
        texts: Its tokenizer.
    """

    attention = (4.0, 5.0)
    scale = 10.0

    def __init__(
        self, image: ResNet, global_embedder: nn.Linear, local_embedder: nn.Conv2d, text: BertModel, texts: BertTexts
    ) -> None:
        super().__init__()
        self.image, self.global_embedder, self.local_embedder = image, global_embedder, local_embedder
        self.text, self.texts = text, texts
        self.preprocess = Preprocess(224, _HALF, _HALF, "letterbox", 256, "area", grey=True)

    @classmethod
    def load(cls, place: str, text_tower: Path | None = None, tokenizer: Path | None = None) -> "GloriaAdapter":
        """Loads GLoRIA; see :func:`~recipes.medmoe.models.load.load_adapter`.

        Args:
            place: The file.
            text_tower: Folder with the ``config.json`` of Bio_ClinicalBERT.
            tokenizer: Folder of the tokenizer; the text tower's by default.
        """
        what = f"model gloria:{place}"
        state = {name.rpartition("gloria.")[2]: value for name, value in read_state(Path(place)).items()}
        weights = [state.get(f"img_encoder.{name}_embedder.weight") for name in ("global", "local")]
        if any(weight is None for weight in weights):
            raise ValueError(f"{what} is none of GLoRIA's files: it lacks img_encoder.global_embedder (--model).")
        image = build_resnet(state, "img_encoder.model.")
        global_embedder = nn.Linear(weights[0].shape[1], weights[0].shape[0])
        local_embedder = nn.Conv2d(weights[1].shape[1], weights[1].shape[0], 1, bias=False)
        text = build_bert(HUB_TOWER, text_tower, pooler="text_encoder.model.pooler.dense.weight" in state)
        parts = {
            "img_encoder.model.": image,
            "img_encoder.global_embedder.": global_embedder,
            "img_encoder.local_embedder.": local_embedder,
            "text_encoder.model.": text,
        }
        load_parts(state, parts, what)
        texts = BertTexts(load_tokenizer(HUB_TOWER, text_tower, tokenizer), LONGEST)
        return cls(image, global_embedder, local_embedder, text, texts)

    def encode_images(self, images: Tensor) -> ImageFeatures:
        """See :class:`Adapter`."""
        enlarged = F.interpolate(images, size=(ENLARGED, ENLARGED), mode="bilinear", align_corners=True)
        maps = resnet_maps(self.image, enlarged)
        pooled = maps.last.mean((2, 3))
        return image_features(pooled, self.global_embedder(pooled), self.local_embedder(maps.third))

    def read(self, text: str) -> str:
        """See :func:`cleaned`."""
        return cleaned(text)

    def encode_texts(self, tokens: Tokens) -> TextFeatures:
        """See :class:`Adapter`."""
        output = self.text(tokens.input_ids, attention_mask=tokens.attention_mask.long(), output_hidden_states=True)
        states = sum(output.hidden_states[-LAST_LAYERS:])
        embedding = (states * tokens.attention_mask[:, :, None]).sum(1) / LONGEST
        return text_features(tokens, embedding, states, how="sum")


def cleaned(text: str) -> str:
    """Returns a text as GLoRIA reads it: its sentences of two words and more, without anything but words."""
    sentences = re.split(r"[0-9]+\.|\.", text.replace("\n", " "))
    words = [re.findall(r"\w+", sentence.replace("\ufffd\ufffd", " ").lower()) for sentence in sentences]
    plain = [[word.encode("ascii", "ignore").decode() for word in sentence] for sentence in words if len(sentence) > 1]
    return " ".join(word for sentence in plain for word in sentence if word)
