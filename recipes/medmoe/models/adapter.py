"""What an adapter of a released model is: two encoders into one space, and what the model does to its inputs.

Shape letters: B images or texts, D the common width, h and w a map of regions, N words, P pieces of words.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moekit.contrastive import aggregate_word_pieces
from recipes.medmoe.data.tokens import Tokens
from recipes.medmoe.features import ImageFeatures, TextFeatures
from recipes.medmoe.models.preprocess import Preprocess

LARGEST_LOGIT_SCALE = 4.6052
"""MedCLIP and FLAIR hold the logarithm of their scale between 0 and this."""


class TextReader(Protocol):
    """A tokenizer that knows the word of each of its pieces."""

    def tokenize(self, texts: Sequence[str]) -> Tokens:
        """Tokenizes texts."""
        ...

    def words(self, text: str) -> list[str]:
        """Returns the words that are left of a text."""
        ...


class Adapter(nn.Module, ABC):
    """A released vision-language model, its weights loaded, in eval mode.

    Attributes:
        preprocess: From any image to what :meth:`encode_images` takes.
        texts: The tokenizer.
        scale: What the model multiplies cosines by.
        attention: GLoRIA's first two temperatures, of a model that was trained by word-region attention; ``None`` of
            all others, whose word maps are cosines of words and regions.
        notes: What a reader of its results should know.
    """

    preprocess: Preprocess
    texts: TextReader
    scale: float
    attention: tuple[float, float] | None = None
    notes: tuple[str, ...] = ()

    @abstractmethod
    def encode_images(self, images: Tensor) -> ImageFeatures:
        """Encodes ``(B, 3, size, size)`` images.

        Returns:
            Features whose ``embedding`` is of norm 1, whose ``pooled`` is the vector before the projection, and whose
            ``maps`` is one map ``(B, D, h, w)`` of regions in the common space, or nothing where there is none.
        """

    def read(self, text: str) -> str:
        """Returns a text as the release changes it before its tokenizer; unchanged by default."""
        return text

    def tokenize(self, texts: Sequence[str]) -> Tokens:
        """Tokenizes texts as the release does: its case, its longest text, its padding."""
        return self.texts.tokenize([self.read(text) for text in texts])

    @abstractmethod
    def encode_texts(self, tokens: Tokens) -> TextFeatures:
        """Encodes texts; ``embedding`` is of norm 1, ``words`` are in the common space."""

    def words(self, text: str) -> list[str]:
        """Returns the words of a text that the model reads, in the order of ``TextFeatures.words``."""
        return self.texts.words(self.read(text))


class ProjectedTowers(Adapter):
    """A release of an image and a text tower, each with a linear projection into the common space.

    Args:
        image: Tower of images.
        projection: Of the pooled image.
        text: Tower of texts.
        text_projection: Of a text.
        texts: Its tokenizer.
        scale: Of cosines.
    """

    def __init__(
        self,
        image: nn.Module,
        projection: nn.Linear,
        text: nn.Module,
        text_projection: nn.Linear,
        texts: TextReader,
        scale: float,
    ) -> None:
        super().__init__()
        self.image, self.projection, self.text, self.text_projection = image, projection, text, text_projection
        self.texts, self.scale = texts, scale


def bare_linear(weight: Tensor) -> nn.Linear:
    """Returns a linear layer without bias, of the shape of ``weight`` ``(D_out, D_in)``, its values not set."""
    return nn.Linear(weight.shape[1], weight.shape[0], bias=False)


def clamped_scale(logit_scale: Tensor) -> float:
    """Returns what cosines are multiplied by, of a logarithm that is held between 0 and 4.6052."""
    return math.exp(min(max(float(logit_scale), 0.0), LARGEST_LOGIT_SCALE))


def text_features(tokens: Tokens, embedding: Tensor, states: Tensor, *, how: str = "mean") -> TextFeatures:
    """Puts the features of texts together.

    Args:
        tokens: The texts.
        embedding: ``(B, D)``, of any norm.
        states: ``(B, P, D)``, the states of the tokens in the common space.
        how: ``"mean"`` or ``"sum"`` of the pieces of a word.
    """
    words, mask = aggregate_word_pieces(states, tokens.word_ids, how=how, num_words=tokens.num_words)
    unit = F.normalize(embedding, dim=-1)
    return TextFeatures(words, mask, unit, embedding)


def image_features(pooled: Tensor, embedding: Tensor, regions: Tensor | None = None) -> ImageFeatures:
    """Puts the features of images together.

    Args:
        pooled: ``(B, C)``, before the projection.
        embedding: ``(B, D)``, of any norm.
        regions: ``(B, D, h, w)``, if there are any.
    """
    maps = () if regions is None else (regions,)
    return ImageFeatures(maps, pooled.flatten(1), F.normalize(embedding, dim=-1))


def cosine_maps(regions: Tensor, words: Tensor, mask: Tensor) -> Tensor:
    """Computes the cosine of each word with each region, brought to [0, 1]: ``(1 + cosine) / 2``.

    Args:
        regions: ``(B, D, h, w)``.
        words: ``(B, N, D)``.
        mask: ``(B, N)``, True for words of the text.

    Returns:
        ``(B, N, h, w)``; 0 where there is no word.
    """
    cosines = torch.einsum("bdhw,bnd->bnhw", F.normalize(regions, dim=1), F.normalize(words, dim=-1))
    return (1 + cosines) / 2 * mask[:, :, None, None]
