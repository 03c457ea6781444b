"""MedMoE at the size of a preset with random weights, without a hub, and a batch for it."""

import torch
from lightning.fabric import Fabric
from transformers import AutoModel, BertConfig

from benchmarks.train_step.parts import StepParts
from recipes.medmoe.config import Config
from recipes.medmoe.data.batches import Batch
from recipes.medmoe.data.tokens import NO_WORD, Tokens
from recipes.medmoe.model import MedMoE
from recipes.medmoe.pretrain.prepare import prepare_model
from recipes.medmoe.pretrain.stage import PairObjective, make_optimizer
from recipes.shared.encoders.pyramid import load_pyramid_encoder
from recipes.shared.encoders.text import TextEncoder, load_text_encoder

CLINICAL_BERT = "emilyalsentzer/Bio_ClinicalBERT"
CLINICAL_VOCABULARY = 28_996
"""Word pieces of BERT's cased vocabulary, which Bio_ClinicalBERT has."""


def step_parts(config: Config, batch_size: int, device: torch.device) -> StepParts:
    """Makes the parts of a step.

    Args:
        config: The settings.
        batch_size: Pairs of the step.
        device: Where it runs.
    """
    model = random_model(config)
    prepare_model(model, config.train, device)
    maps = [
        torch.randn(batch_size, channels, *size)
        for channels, size in zip(model.image_encoder.channels, model.image_encoder.sizes, strict=True)
    ]

    def experts(fabric: Fabric) -> None:
        width = model.image_encoder.dim if config.model.route_on == "image" else model.text_encoder.dim
        rows = torch.randn(batch_size, width, device=fabric.device)
        with fabric.autocast():
            output, _stats = model.moe([one.to(fabric.device) for one in maps], router_input=rows)
        output.float().sum().backward()
        model.moe.zero_grad(set_to_none=True)

    batch = random_batch(model, batch_size)
    return StepParts(model, PairObjective(config), batch, make_optimizer(model, config.train), experts)


def random_model(config: Config) -> MedMoE:
    """Builds the model of a preset on the default device, which may be ``meta``.

    Bio_ClinicalBERT is built from transformers' defaults for BERT and its vocabulary's size: its configuration would
    come from a hub.

    Args:
        config: The settings; their weights are not loaded.
    """
    model = config.model
    image_encoder = load_pyramid_encoder(model.image_encoder, model.image_size, weights="random")
    if model.text_encoder == CLINICAL_BERT:
        text_encoder = TextEncoder(AutoModel.from_config(BertConfig(vocab_size=CLINICAL_VOCABULARY)), None)
    else:
        words = " ".join(f"word{number}" for number in range(8))
        text_encoder = load_text_encoder(model.text_encoder, weights="random", texts=[words] * 2)
    return MedMoE(model, image_encoder, text_encoder)


def random_batch(model: MedMoE, batch_size: int) -> Batch:
    """Draws a batch on the CPU: every text as long as texts may be, one piece a word, every modality known."""
    rng = torch.Generator().manual_seed(0)
    size, length = model.config.image_size, model.config.text_tokens
    vocabulary = model.text_encoder.model.config.vocab_size
    word_ids = torch.full((batch_size, length), NO_WORD)
    word_ids[:, 1:-1] = torch.arange(length - 2)  # special tokens at both ends
    tokens = Tokens(
        torch.randint(0, vocabulary, (batch_size, length), generator=rng),
        torch.ones(batch_size, length, dtype=torch.bool),
        word_ids,
        length - 2,
    )
    return Batch(
        images=torch.randn(batch_size, 3, size, size, generator=rng),
        tokens=tokens,
        labels=torch.arange(batch_size) % len(model.config.modalities),
        text_ids=torch.arange(batch_size),
        index=torch.arange(batch_size),
        skipped=torch.tensor(0),
    )
