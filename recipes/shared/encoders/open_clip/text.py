"""The text tower of a CLIP of open_clip.

Shape letters: B samples, N tokens of a text, D width of the tower.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from recipes.shared.encoders.hub import loading
from recipes.shared.encoders.open_clip.whole import REMEDY, library_name, load_whole
from recipes.shared.extras import require

_SAVED = "open_clip_text.json"
# What stands in for the image tower: nothing of it is kept.
_NO_IMAGE = {"image_size": 8, "patch_size": 8, "width": 64, "layers": 1, "head_width": 64}


class OpenClipTokenizer:
    """CLIP's tokenizer with as much of the interface of a transformers tokenizer as the recipes use.

    Args:
        context_length: Longest text, in tokens.
    """

    pad_token_id, mask_token_id = 0, None

    def __init__(self, context_length: int) -> None:
        self.context_length = context_length
        self.simple = require("open_clip", "the tokenizer of CLIP", extra="openclip").SimpleTokenizer()
        self.all_special_ids: list[int] = self.simple.all_special_ids
        self.unk_token_id: int = self.simple.eot_token_id

    def __len__(self) -> int:
        return self.simple.vocab_size

    def __call__(self, text: str, *, truncation: bool = True, max_length: int | None = None) -> dict[str, list[int]]:
        """Returns ``input_ids``, cut to the shorter of ``max_length`` and the context; the last one ends the text."""
        limit = min(max_length or self.context_length, self.context_length) if truncation else None
        ids = [self.simple.sot_token_id, *self.simple.encode(text), self.simple.eot_token_id]
        if limit is not None and len(ids) > limit:
            ids = [*ids[: limit - 1], self.simple.eot_token_id]
        return {"input_ids": ids}

    def get_vocab(self) -> dict[str, int]:
        """Returns the id of each token."""
        return self.simple.encoder


class OpenClipText(nn.Module):
    """A text tower of open_clip with the interface of :class:`~recipes.shared.encoders.text.TextEncoder`.

    Args:
        tower: A ``TextTransformer``; it loses its projection.
        config: What it is built from: ``text_cfg`` and ``quick_gelu``.
    """

    def __init__(self, tower: nn.Module, config: dict[str, Any]) -> None:
        super().__init__()
        tower.text_projection = None
        self.model = tower
        self.config = config
        self.projection: Tensor | None = None
        self.dim: int = tower.width
        self.tokenizer = OpenClipTokenizer(tower.context_length)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, layers: Sequence[int] = (-1,)) -> Tensor:
        """Encodes ``(B, N)`` token ids into ``(B, N, D)`` states.

        Padding on the right is seen by no token before it, so the mask of a causal tower is not needed.

        Raises:
            ValueError: If other layers than the last are requested, or the text is longer than the context.
        """
        if tuple(layers) != (-1,):
            raise ValueError("layers (--text-layers) of a text tower of open_clip must be -1, the last one.")
        length = input_ids.shape[1]
        if length > self.model.context_length:
            raise ValueError(
                f"a text of {length} tokens is longer than the context of {self.model.context_length} (--text-tokens)."
            )
        states = self.model.token_embedding(input_ids) + self.model.positional_embedding[:length]
        mask = None if self.model.attn_mask is None else self.model.attn_mask[:length, :length]
        return self.model.ln_final(self.model.transformer(states, attn_mask=mask))

    def checkpoint_activations(self) -> None:
        """Computes activations of the layers again in backward instead of keeping them."""
        self.model.set_grad_checkpointing(True)

    def save(self, folder: Path) -> None:
        """Writes what :meth:`from_saved` needs; the vocabulary is that of the package."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _SAVED).write_text(json.dumps(self.config) + "\n")

    @classmethod
    def from_saved(cls, folder: Path) -> "OpenClipText":
        """Builds the architecture that :meth:`save` described, with random weights."""
        config = json.loads((folder / _SAVED).read_text())
        return cls(_text_tower(config), config)


def was_saved(folder: Path) -> bool:
    """Tells whether :meth:`OpenClipText.save` wrote a folder."""
    return (folder / _SAVED).is_file()


def load_text(name: str, *, weights: str) -> tuple[nn.Module, Any, Tensor | None]:
    """Loads a text tower.

    Args:
        name: As the package says.
        weights: ``"hub"`` for those of ``name``, or ``"random"``.

    Returns:
        An :class:`OpenClipText`, or a transformers model where the CLIP has one; that model's tokenizer, else ``None``;
        and the trained projection, as for :func:`~recipes.shared.encoders.open_clip.image.load_image`.

    Raises:
        RuntimeError: If it cannot be loaded; the message names a remedy.
    """
    model, config = load_whole(name, weights=weights, what="text encoder")
    library = require("open_clip", f"text encoder {name!r}", extra="openclip")
    text = getattr(model, "text", model)
    if config["text_cfg"].get("hf_model_name"):
        with loading(f"the tokenizer of {name!r}", REMEDY):
            tokenizer = library.get_tokenizer(library_name(name)[0]).tokenizer
        projection = text.proj.weight.T if isinstance(text.proj, nn.Linear) else None
        tower: nn.Module = text.transformer
    else:
        own = {"text_cfg": config["text_cfg"], "quick_gelu": config.get("quick_gelu", False)}
        plain = _text_tower(own)
        plain.text_projection = None
        names = plain.state_dict().keys()
        plain.load_state_dict({name: value for name, value in text.state_dict().items() if name in names})
        projection = text.text_projection if isinstance(text.text_projection, Tensor) else None
        tower, tokenizer = OpenClipText(plain, own), None
    return tower, tokenizer, None if projection is None or weights == "random" else projection.detach().clone()


def _text_tower(config: dict[str, Any]) -> nn.Module:
    library = require("open_clip", "a text encoder of open_clip", extra="openclip")
    whole = library.CustomTextCLIP(8, dict(_NO_IMAGE), dict(config["text_cfg"]), quick_gelu=config["quick_gelu"])
    return whole.text
