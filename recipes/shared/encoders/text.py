"""Text encoders: any transformers model, or a small BioGPT or BERT with a vocabulary of the training texts."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    BertConfig,
    BioGptConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from recipes.shared.encoders.attention import always_pass_mask
from recipes.shared.encoders.hub import first_line, loading
from recipes.shared.encoders.open_clip.text import OpenClipText, was_saved
from recipes.shared.encoders.open_clip.text import load_text as load_clip_text
from recipes.shared.encoders.open_clip.whole import is_open_clip

TINY = "tiny"
TINY_BERT = "tiny-bert"
_SPECIAL = {"unk_token": "[UNK]", "pad_token": "[PAD]", "bos_token": "[BOS]", "eos_token": "[EOS]"}


class TextEncoder(nn.Module):
    """A transformers model without its head, and the tokenizer that belongs to it.

    A pooler (BERT has one after its first token) is taken off: nothing here reads it, and weights without
    gradients stop distributed training.

    Args:
        model: Gives ``last_hidden_state``.
        tokenizer: Its tokenizer.

    Attributes:
        projection: ``(dim, D)``, the trained map of a text's vector into a space that it shares with images; ``None``
            of a model that came with none.
    """

    def __init__(self, model: nn.Module, tokenizer: Any) -> None:
        super().__init__()
        if getattr(model, "pooler", None) is not None:
            model.pooler = None
        if isinstance(model, PreTrainedModel):
            always_pass_mask(model)
        self.model = model
        self.tokenizer = tokenizer
        self.projection: Tensor | None = None
        self.dim: int = model.config.hidden_size

    def checkpoint_activations(self) -> None:
        """Computes activations of the layers again in backward instead of keeping them.

        Raises:
            ValueError: If the architecture cannot.
        """
        if not self.model.supports_gradient_checkpointing:
            raise ValueError(
                f"activation_checkpointing (--activation-checkpointing) is not known to text encoder "
                f"{type(self.model).__name__}: leave it out, or give another --text-encoder."
            )
        self.model.config.use_cache = False  # keys and values for generation, which would be kept
        names = ("activation_checkpointing_enable", "gradient_checkpointing_enable")  # the second in older versions
        name = next(name for name in names if hasattr(self.model, name))
        getattr(self.model, name)({"use_reentrant": False})

    def forward(self, input_ids: Tensor, attention_mask: Tensor, layers: Sequence[int] = (-1,)) -> Tensor:
        """Encodes ``(B, N)`` token ids into ``(B, N, D)`` states.

        Args:
            input_ids: The tokens.
            attention_mask: 1 at tokens of a text.
            layers: Whose mean is taken: 0 are the embeddings, -1 the last layer.

        Raises:
            ValueError: If the encoder has no such layer.
        """
        if tuple(layers) == (-1,):
            return self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        output = self.model(input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=True)
        count = len(output.hidden_states)
        if any(not -count <= layer < count for layer in layers):
            raise ValueError(
                f"layers (--text-layers) of a text encoder of {count - 1} layers lie between {-count} and {count - 1}, "
                f"got {', '.join(map(str, layers))}."
            )
        return torch.stack([output.hidden_states[layer] for layer in layers]).mean(0)

    def save(self, folder: Path) -> None:
        """Writes configuration and tokenizer (not the weights), enough for :meth:`from_saved`."""
        self.model.config.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    @classmethod
    def from_saved(cls, folder: Path) -> "TextEncoder | OpenClipText":
        """Builds the architecture that :meth:`save` described, with random weights; never by code of the folder.

        Raises:
            ValueError: If the folder is missing or damaged; the message names it.
        """
        if not folder.is_dir():
            raise ValueError(f"{folder} does not exist: is it in the folder of a run that reads texts?")
        # Files that are cut off fail wherever open_clip, transformers or tokenizers trip over them.
        try:
            if was_saved(folder):
                return OpenClipText.from_saved(folder)
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
            model = AutoModel.from_config(config, trust_remote_code=False)
            return cls(model, AutoTokenizer.from_pretrained(folder, trust_remote_code=False))
        except Exception as error:
            raise ValueError(
                f"{folder} does not hold a text encoder's configuration and tokenizer ({first_line(error)}): restore "
                "the folder from a copy of the run, or train again."
            ) from error


def load_text_encoder(name: str, *, weights: str = "hub", texts: Sequence[str] = ()) -> TextEncoder | OpenClipText:
    """Loads an encoder by hub id or from a local folder, or makes a tiny one.

    Args:
        name: A hub id (``microsoft/biogpt``, ``emilyalsentzer/Bio_ClinicalBERT``), a folder saved by
            ``save_pretrained`` (model and tokenizer), ``open_clip:...``
            (:mod:`recipes.shared.encoders.open_clip`), or one of two that are random, have two layers of width
            128, and the words of ``texts`` as vocabulary: ``"tiny"``, a BioGPT, where a word attends to the words
            before it, and ``"tiny-bert"``, a BERT, where it attends to all of them, as word-level alignment needs.
        weights: ``"hub"`` for pretrained weights, ``"random"`` for the architecture alone (its
            configuration and tokenizer still come from ``name``).
        texts: The training texts, for the tiny ones only.

    Raises:
        ValueError: If ``weights`` is neither word.
        RuntimeError: If model or tokenizer cannot be loaded; the message names a remedy.
    """
    if weights not in ("hub", "random"):
        raise ValueError(f'weights of a text encoder must be "hub" or "random", got {weights!r} (--text-weights).')
    if is_open_clip(name):
        tower, tokenizer, projection = load_clip_text(name, weights=weights)
        encoder = tower if tokenizer is None else TextEncoder(tower, tokenizer)
        encoder.projection = projection
        return encoder
    if name in (TINY, TINY_BERT):
        return _tiny(texts, bert=name == TINY_BERT)
    remedy = (
        "Give --text-encoder a local folder that holds the model and its tokenizer (save_pretrained writes both), "
        "or --text-encoder tiny or tiny-bert for a small one trained from scratch."
    )
    with loading(f"text encoder {name!r}", remedy):
        tokenizer = AutoTokenizer.from_pretrained(name)
        if weights == "random":
            model = AutoModel.from_config(AutoConfig.from_pretrained(name))
        else:
            model = AutoModel.from_pretrained(name)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return TextEncoder(model, tokenizer)


def _tiny(texts: Sequence[str], *, bert: bool) -> TextEncoder:
    tokenizer = _word_tokenizer(texts, framed=bert)
    sizes = {
        "vocab_size": len(tokenizer),
        "hidden_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 256,
        "max_position_embeddings": 512,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    config: PretrainedConfig = BertConfig(**sizes) if bert else BioGptConfig(**sizes)
    return TextEncoder(AutoModel.from_config(config), tokenizer)


def _word_tokenizer(texts: Sequence[str], *, framed: bool) -> PreTrainedTokenizerFast:
    """Makes a token of each word of the texts; ``framed`` puts ``[BOS]`` and ``[EOS]`` around a text, as in BERT."""
    words = Tokenizer(models.WordLevel(unk_token=_SPECIAL["unk_token"]))
    words.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordLevelTrainer(
        vocab_size=8192, min_frequency=2, special_tokens=list(_SPECIAL.values()), show_progress=False
    )
    words.train_from_iterator(texts, trainer)
    if framed:
        frame = [_SPECIAL["bos_token"], _SPECIAL["eos_token"]]
        words.post_processor = processors.TemplateProcessing(
            single=f"{frame[0]} $A {frame[1]}", special_tokens=[(token, words.token_to_id(token)) for token in frame]
        )
    return PreTrainedTokenizerFast(tokenizer_object=words, **_SPECIAL)
