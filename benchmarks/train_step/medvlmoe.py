"""MedVLMoE at the size of a preset with random weights, without a hub, and a batch for it."""

import torch
from lightning.fabric import Fabric
from transformers import AutoModel, BioGptConfig

from benchmarks.train_step.parts import StepParts
from recipes.medvlmoe.config import Config
from recipes.medvlmoe.data import Batch
from recipes.medvlmoe.model import MedVLMoE
from recipes.medvlmoe.objective import DiagnosisObjective
from recipes.medvlmoe.prepare import prepare_model
from recipes.shared.encoders.image import load_image_encoder
from recipes.shared.encoders.text import TextEncoder, load_text_encoder
from recipes.shared.weight_decay import parameter_groups

CLASSES = 14
"""As many findings as ChestX-ray14 has."""
WORDS = 8
"""Words of the vocabulary of a tiny text encoder."""


def step_parts(config: Config, batch_size: int, device: torch.device) -> StepParts:
    """Makes the parts of a step.

    Args:
        config: The settings.
        batch_size: Studies of the step.
        device: Where it runs.
    """
    settings = config.train
    model = random_model(config)
    prepare_model(model, settings, device)
    groups = parameter_groups(
        model, weight_decay=settings.weight_decay, rates={"all": settings.lr_head}, part_of=lambda name: "all"
    )

    def experts(fabric: Fabric) -> None:
        x = torch.randn(batch_size, 2 * config.model.dim, device=fabric.device, requires_grad=True)
        with fabric.autocast():
            output, _stats = model.experts(x)
        output.float().sum().backward()
        model.experts.zero_grad(set_to_none=True)

    objective = DiagnosisObjective(model, settings)
    return StepParts(model, objective, random_batch(model, batch_size), torch.optim.AdamW(groups), experts)


def random_model(config: Config) -> MedVLMoE:
    """Builds the model of a preset on the default device, which may be ``meta``.

    ``microsoft/biogpt`` is built from transformers' defaults, which are its sizes: its configuration would come from a
    hub.

    Args:
        config: The settings; their weights are not loaded.
    """
    model = config.model
    image_encoder = load_image_encoder(
        model.image_encoder, model.image_size, weights="random", output_stride=model.image_stride
    )
    if model.text_encoder == "microsoft/biogpt":
        text_encoder = TextEncoder(AutoModel.from_config(BioGptConfig()), None)
    else:
        words = " ".join(f"word{number}" for number in range(WORDS))
        text_encoder = load_text_encoder(model.text_encoder, weights="random", texts=[words] * 2)
    return MedVLMoE(model, image_encoder, text_encoder, CLASSES, "multi-label", config.train.balance)


def random_batch(model: MedVLMoE, batch_size: int) -> Batch:
    """Draws a batch on the CPU: every text as long as texts may be, every label known."""
    rng = torch.Generator().manual_seed(0)
    size, tokens = model.config.image_size, model.config.text_tokens
    assert model.text_encoder is not None
    vocabulary = model.text_encoder.model.config.vocab_size
    return Batch(
        images=torch.randn(batch_size, 3, size, size, generator=rng),
        input_ids=torch.randint(0, vocabulary, (batch_size, tokens), generator=rng),
        text_mask=torch.ones(batch_size, tokens, dtype=torch.bool),
        labels=torch.randint(0, 2, (batch_size, CLASSES), generator=rng).float(),
        index=torch.arange(batch_size),
    )
