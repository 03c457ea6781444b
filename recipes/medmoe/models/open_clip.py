"""CLIP, BiomedCLIP, QuiltNet: whatever open_clip loads (extra ``openclip``).

The embeddings are the library's own. Regions and words, which no such model was trained for, are made as MaskCLIP does
(Zhou et al. 2022, https://arxiv.org/abs/2112.01071): the last layer's patches go through what projects the class token;
of a CLIP ResNet they go through value and output projection of its attention pooling.
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from recipes.medmoe.data.tokens import NO_WORD, TokenIds, Tokens, pad_tokens, token_ids, words_of
from recipes.medmoe.features import ImageFeatures, TextFeatures
from recipes.medmoe.models.adapter import Adapter, image_features, text_features
from recipes.medmoe.models.bert import padded_to
from recipes.medmoe.models.preprocess import How, Preprocess
from recipes.shared.encoders.hub import loading
from recipes.shared.encoders.open_clip.whole import PREFIX, library_name, load_whole
from recipes.shared.extras import require

REMEDY = (
    "Give a folder that holds open_clip_config.json and the weights (--model open_clip:FOLDER), and, if its text tower "
    "is one of a hub, folders of its configuration and its tokenizer (--text-tower, --tokenizer)."
)
_HOW: dict[str, How] = {"shortest": "crop", "longest": "letterbox", "squash": "squash"}


class OpenClipAdapter(Adapter):
    """A model of open_clip.

    Args:
        model: A ``CLIP`` or ``CustomTextCLIP``.
        texts: Its tokenizer.
    """

    def __init__(self, model: nn.Module, texts: "SimpleWords | HubWords") -> None:
        super().__init__()
        config = model.visual.preprocess_cfg
        size = config["size"] if isinstance(config["size"], int) else config["size"][0]
        mean, std = (tuple(map(float, config[name])) for name in ("mean", "std"))
        self.model, self.texts = model, texts
        self.preprocess = Preprocess(
            size, mean, std, _HOW[config["resize_mode"]], interpolation=config["interpolation"]
        )
        self.scale = float(model.logit_scale.detach().exp())

    @classmethod
    def load(cls, place: str, text_tower: Path | None = None, tokenizer: Path | None = None) -> "OpenClipAdapter":
        """Loads a model; see :func:`~recipes.medmoe.models.load.load_adapter`.

        Args:
            place: ``ARCHITECTURE/TAG``, ``hf-hub:owner/name``, a folder, or ``local-dir:`` before one.
            text_tower: Folder of a text tower's configuration.
            tokenizer: Folder of its tokenizer; by default the text tower's where it holds one, else the model's.
        """
        library = require("open_clip", f"model {PREFIX}{place}", extra="openclip")
        model, config = load_whole(PREFIX + place, text_tower=text_tower, remedy=REMEDY)
        text = config["text_cfg"]
        if not text.get("hf_model_name"):
            if tokenizer is not None:
                raise ValueError(f"model {PREFIX}{place} has a tokenizer of its own: leave out --tokenizer.")
            return cls(model, SimpleWords(library.get_tokenizer(library_name(place)[0])))
        if text.get("tokenizer_mode"):
            raise ValueError(
                f"model {PREFIX}{place}: the tokenizer's mode {text['tokenizer_mode']!r} is not supported."
            )
        folder = tokenizer
        if folder is None and text_tower is not None and any(text_tower.glob("tokenizer*")):
            folder = text_tower
        with loading(f"the tokenizer of {PREFIX}{place}", REMEDY):
            if folder is None:
                own = library.get_tokenizer(library_name(place)[0])
            else:
                context = text.get("context_length", 77)
                own = library.tokenizer.HFTokenizer(str(folder), context, **text.get("tokenizer_kwargs", {}))
        return cls(model, HubWords(own))

    def encode_images(self, images: Tensor) -> ImageFeatures:
        """See :class:`Adapter`."""
        visual = self.model.visual
        if hasattr(visual, "trunk"):
            return _of_timm(visual, images)
        if hasattr(visual, "attnpool"):
            return of_clip_resnet(visual, images)
        output = visual.forward_intermediates(images, 1, normalize_intermediates=True, output_extra_tokens=True)
        pooled, regions = output["image_intermediates_prefix"][-1][:, 0], output["image_intermediates"][-1]
        if getattr(visual, "attn_pool", None) is not None or visual.pool_type != "tok":
            return image_features(output["image_features"], output["image_features"])
        if visual.proj is not None:
            regions = torch.einsum("bchw,cd->bdhw", regions, visual.proj)
        return image_features(pooled, output["image_features"], regions)

    def encode_texts(self, tokens: Tokens) -> TextFeatures:
        """See :class:`Adapter`."""
        text = getattr(self.model, "text", self.model)
        ids = tokens.input_ids
        if hasattr(text, "pooler"):  # a tower of transformers
            mask = (ids != text.config.pad_token_id).long()
            output = text.transformer(input_ids=ids, attention_mask=mask)
            embedding = text.proj(text.pooler(output, mask))
            return text_features(tokens, embedding, text.proj(output.last_hidden_state))
        states = text.token_embedding(ids) + text.positional_embedding[: ids.shape[1]]
        mask = None if text.attn_mask is None else text.attn_mask[: ids.shape[1], : ids.shape[1]]
        states = text.ln_final(text.transformer(states, attn_mask=mask))
        project = text.text_projection
        if project is not None:
            states = project(states) if isinstance(project, nn.Module) else states @ project
        return text_features(tokens, self.model.encode_text(ids), states)


class SimpleWords:
    """CLIP's own tokenizer, with the word of each piece.

    Args:
        tokenizer: A ``SimpleTokenizer``.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def tokenize(self, texts: Sequence[str]) -> Tokens:
        """Tokenizes texts, padded with zeros to the context, as CLIP reads them."""
        return padded_to([self._ids(text) for text in texts], self.tokenizer.context_length, 0)

    def words(self, text: str) -> list[str]:
        """Returns the words of which a piece is left."""
        kept = max(self._ids(text).word_ids) + 1
        return self._all_words(text)[:kept]

    def _all_words(self, text: str) -> list[str]:
        pattern = self.tokenizer.pat
        return [match if isinstance(match, str) else match[0] for match in _findall(pattern)(self._clean(text))]

    def _clean(self, text: str) -> str:
        return self.tokenizer.clean_fn(text)

    def _ids(self, text: str) -> TokenIds:
        ids, words = [self.tokenizer.sot_token_id], [NO_WORD]
        for number, word in enumerate(self._all_words(text)):
            pieces = self.tokenizer.encode(word)
            ids += pieces
            words += [number] * len(pieces)
        limit = self.tokenizer.context_length
        ids, words = [*ids, self.tokenizer.eot_token_id][:limit], [*words, NO_WORD][:limit]
        ids[-1], words[-1] = self.tokenizer.eot_token_id, NO_WORD
        return TokenIds(ids, words)


class HubWords:
    """A tokenizer of transformers inside open_clip's, padded to the longest text: its towers mask what is padded.

    Args:
        tokenizer: An ``HFTokenizer``.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def tokenize(self, texts: Sequence[str]) -> Tokens:
        """Tokenizes texts."""
        inner = self.tokenizer.tokenizer
        limit = self.tokenizer.context_length
        texts = [self.tokenizer.clean_fn(text) for text in texts]
        tokens = pad_tokens([token_ids(text, inner, limit) for text in texts], inner.pad_token_id)
        if not self.tokenizer.strip_sep_token:
            return tokens
        ids = tokens.input_ids.masked_fill(tokens.input_ids == inner.sep_token_id, 0)
        return tokens._replace(input_ids=ids)

    def words(self, text: str) -> list[str]:
        """Returns the words that are left."""
        return words_of(self.tokenizer.clean_fn(text), self.tokenizer.tokenizer, self.tokenizer.context_length)


def of_clip_resnet(visual: nn.Module, images: Tensor) -> ImageFeatures:
    """Encodes by CLIP's ResNet, whose pooling projects too."""
    output = visual.forward_intermediates(images, 1)
    pool, places = visual.attnpool, output["image_intermediates"][-1].permute(0, 2, 3, 1)
    regions = pool.c_proj(pool.v_proj(places)).permute(0, 3, 1, 2)
    return image_features(output["image_features"], output["image_features"], regions)


def _of_timm(visual: nn.Module, images: Tensor) -> ImageFeatures:
    """Encodes by a timm trunk; its head works at every place unless it pools by attention."""
    states, maps = visual.trunk.forward_intermediates(images, indices=1, norm=True, output_fmt="NCHW")
    pooled = visual.trunk.forward_head(states)
    embedding = visual.head(pooled)
    if hasattr(visual.head, "pool") or maps[-1].shape[1] != pooled.shape[-1]:
        return image_features(pooled, embedding)
    return image_features(pooled, embedding, visual.head(maps[-1].permute(0, 2, 3, 1)).permute(0, 3, 1, 2))


def _findall(pattern: Any) -> Callable[[str], list[Any]]:
    return pattern.findall if hasattr(pattern, "findall") else lambda text: re.findall(pattern, text)
