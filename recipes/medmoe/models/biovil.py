"""BioViL: ``biovil_image_resnet50_proj_size_128.pt``, and the folder of CXR-BERT with its weights (``--text-tower``).

Names (microsoft/hi-ml, ``hi-ml-multimodal/src/health_multimodal``): ``encoder.encoder.*`` is torchvision's ResNet with
a last layer that nothing uses, ``projector.model.{0,1,3}.*`` two 1x1 convolutions with a batch norm and a ReLU between
(``image/model/``); of CXR-BERT ``bert.*`` and ``cls_projection_head.*`` (``text/model/modelling_cxrbert.py``); its
``cls.predictions.*`` guesses masked words and is left out. ``config.json`` is read as a BERT's; code that the folder
brings is not run.

- Images: own darkest and brightest values to 0 and 255, grey, the shorter side to 512 pixels, 480 cut out, no mean or
  deviation. The embedding is the mean of the projected places.
- Texts: without ``!?.`` at their end, masked; the projection of the last layer's first token.
- The files hold no scale of cosines: they are taken as they are.
"""

import json
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torchvision.models.resnet import ResNet
from transformers import AutoTokenizer, BertConfig, BertModel, BertTokenizerFast

from recipes.medmoe.data.tokens import Tokens
from recipes.medmoe.features import ImageFeatures, TextFeatures
from recipes.medmoe.models.adapter import Adapter, image_features, text_features
from recipes.medmoe.models.bert import BertTexts
from recipes.medmoe.models.checkpoints import load_parts, read_state
from recipes.medmoe.models.preprocess import Preprocess
from recipes.medmoe.models.resnet import build_resnet, resnet_maps

_HEAD = "cls_projection_head."


class CxrBertHead(nn.Module):
    """The projection of a token of CXR-BERT.

    Args:
        dim: Width of the BERT.
        common: Common width.
    """

    def __init__(self, dim: int, common: int) -> None:
        super().__init__()
        self.dense_to_hidden = nn.Linear(dim, common)
        self.LayerNorm = nn.LayerNorm(common, eps=1e-12)
        self.dense_to_output = nn.Linear(common, common)

    def forward(self, states: Tensor) -> Tensor:
        """Projects states ``(..., dim)``."""
        hidden = nn.functional.gelu(self.dense_to_hidden(states))
        return self.dense_to_output(self.LayerNorm(hidden))


class BioVilAdapter(Adapter):
    """BioViL; see the module.

    Args:
        image: The ResNet.
        projector: Of a place of its last map.
        text: The BERT.
        head: Its projection.
        texts: Its tokenizer.
    """

    scale = 1.0

    def __init__(
        self, image: ResNet, projector: nn.Sequential, text: BertModel, head: CxrBertHead, texts: BertTexts
    ) -> None:
        super().__init__()
        self.image, self.projector, self.text, self.head, self.texts = image, projector, text, head, texts
        self.preprocess = Preprocess(480, resize=512, interpolation="bilinear", grey=True, stretch=True)

    @classmethod
    def load(cls, place: str, text_tower: Path | None = None, tokenizer: Path | None = None) -> "BioVilAdapter":
        """Loads BioViL; see :func:`~recipes.medmoe.models.load.load_adapter`.

        Args:
            place: The file of the image tower.
            text_tower: Folder of CXR-BERT, with its weights.
            tokenizer: Folder of the tokenizer; the text tower's by default.
        """
        what = f"model biovil:{place}"
        if text_tower is None:
            raise ValueError(
                f"{what} is an image tower alone: give the folder of its text tower with its weights, "
                "microsoft/BiomedVLP-CXR-BERT-specialized (--text-tower)."
            )
        state = read_state(Path(place))
        first, last = (state.get(f"projector.model.{layer}.weight") for layer in (0, 3))
        if first is None or last is None:
            raise ValueError(f"{what} is no image tower of BioViL: it lacks projector.model.0.weight (--model).")
        fc = state.get("encoder.encoder.fc.weight")
        image = build_resnet(state, "encoder.encoder.", None if fc is None else nn.Linear(fc.shape[1], fc.shape[0]))
        projector = nn.Sequential(
            nn.Conv2d(first.shape[1], first.shape[0], 1, bias=False),
            nn.BatchNorm2d(first.shape[0]),
            nn.ReLU(),
            nn.Conv2d(last.shape[1], last.shape[0], 1),
        )
        load_parts(state, {"encoder.encoder.": image, "projector.model.": projector}, what)
        text, head = _cxr_bert(text_tower)
        texts = BertTexts(_tokenizer(tokenizer or text_tower), text.config.max_position_embeddings)
        return cls(image, projector, text, head, texts)

    def encode_images(self, images: Tensor) -> ImageFeatures:
        """See :class:`Adapter`."""
        places = resnet_maps(self.image, images).last
        regions = self.projector(places)
        return image_features(places.mean((2, 3)), regions.mean((2, 3)), regions)

    def read(self, text: str) -> str:
        """Takes ``!?.`` off the end."""
        return text.rstrip("!?.")

    def encode_texts(self, tokens: Tokens) -> TextFeatures:
        """See :class:`Adapter`."""
        output = self.text(tokens.input_ids, attention_mask=tokens.attention_mask.long())
        states = self.head(output.last_hidden_state)
        return text_features(tokens, states[:, 0], states)


def _cxr_bert(folder: Path) -> tuple[BertModel, CxrBertHead]:
    """Builds CXR-BERT from its folder and loads its weights."""
    what = f"the text tower {folder}"
    path = folder / "config.json"
    files = [folder / name for name in ("model.safetensors", "pytorch_model.bin") if (folder / name).is_file()]
    if not path.is_file() or not files:
        raise ValueError(
            f"{what} lacks config.json, or model.safetensors and pytorch_model.bin: give the folder of CXR-BERT "
            "(--text-tower)."
        )
    state = read_state(files[0], "--text-tower")
    weight = state.get(f"{_HEAD}dense_to_hidden.weight")
    if weight is None:
        raise ValueError(f"{what} is no CXR-BERT: it lacks {_HEAD}dense_to_hidden.weight (--text-tower).")
    known = {
        name: value for name, value in json.loads(path.read_text()).items() if name not in ("auto_map", "model_type")
    }
    text = BertModel(BertConfig.from_dict(known), add_pooling_layer=False)
    head = CxrBertHead(weight.shape[1], weight.shape[0])
    load_parts(state, {"bert.": text, _HEAD: head}, what, ignored=("cls.predictions.",))
    return text, head


def _tokenizer(folder: Path) -> Any:
    """Loads a tokenizer of a BERT; the class that CXR-BERT's folder names is its own."""
    if (folder / "tokenizer.json").is_file():
        return BertTokenizerFast.from_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
