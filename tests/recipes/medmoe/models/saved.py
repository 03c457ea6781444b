"""Small checkpoints of released models, saved by the libraries that publish the layout, and small towers of text."""

import json
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

TEXTS = ["Left pleural effusion, no pneumothorax.", "An X-ray of the chest", "effusion"]
PIECES = ["left", "right", "pleural", "effusion", "no", "pneumo", "##thorax", "an", "x", "ray", "of", "the", "chest"]
SPECIAL = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
CLIP_TEXT = {"context_length": 20, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
CLIP_VIT = {"image_size": 32, "patch_size": 8, "width": 64, "layers": 2, "head_width": 32}
CLIP_RESNET = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "patch_size": None}


def word_pieces() -> PreTrainedTokenizerFast:
    """A WordPiece tokenizer as BERT's: lower case, [CLS] and [SEP] around a text, some words in two pieces."""
    names = [*SPECIAL.values(), "[MASK]", ",", ".", "-", *PIECES]
    inner = Tokenizer(models.WordPiece({name: row for row, name in enumerate(names)}, unk_token="[UNK]"))
    inner.normalizer = normalizers.BertNormalizer(lowercase=True)
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    frame = [(name, names.index(name)) for name in ("[CLS]", "[SEP]")]
    inner.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=frame)
    return PreTrainedTokenizerFast(tokenizer_object=inner, mask_token="[MASK]", model_max_length=512, **SPECIAL)


def small_bert(**changes: object) -> BertModel:
    """A BERT of three layers and width 32, random but for its seed."""
    torch.manual_seed(1)
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48}
    config = BertConfig(**{"vocab_size": 64, "max_position_embeddings": 512, **sizes, **changes})
    return BertModel(config).eval()


def save_text_tower(folder: Path, bert: BertModel | None = None) -> Path:
    """Writes configuration and tokenizer, as a hub's repository has them, without weights."""
    (bert or small_bert()).config.save_pretrained(folder)
    word_pieces().save_pretrained(folder)
    return folder


def save_open_clip(folder: Path, vision: dict, text: dict | None = None, **config: object) -> torch.nn.Module:
    """Writes a folder as open_clip reads it with ``local-dir:``; returns the model."""
    import open_clip

    torch.manual_seed(0)
    text = dict(text or CLIP_TEXT)
    config = {"embed_dim": 24, "vision_cfg": dict(vision), "text_cfg": text, **config}
    kind = open_clip.CustomTextCLIP if "hf_model_name" in text else open_clip.CLIP
    model = kind(**json.loads(json.dumps(config))).eval()
    folder.mkdir(parents=True)
    torch.save(model.state_dict(), folder / "open_clip_pytorch_model.bin")
    preprocess = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4]}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}))
    return model


def picture(height: int = 41, width: int = 57, colours: bool = True) -> np.ndarray:
    """An image of noise."""
    rng = np.random.default_rng(height)
    return rng.integers(0, 256, (height, width, 3) if colours else (height, width)).astype(np.uint8)
