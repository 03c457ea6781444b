"""The preset ``paper`` has the sizes of its parts, counted by hand: nothing is allocated or loaded."""

import pytest
import torch

from benchmarks.train_step.medvlmoe import CLASSES, random_batch, random_model
from recipes.medvlmoe.presets import PRESETS

WIDTH, DIM = 1024, 512
"""Of both encoders, and of the common space."""


def linear(inputs, outputs):
    return inputs * outputs + outputs


def norm(width):
    return 2 * width


BLOCK = 4 * linear(WIDTH, WIDTH) + linear(WIDTH, 4 * WIDTH) + linear(4 * WIDTH, WIDTH) + 2 * norm(WIDTH)
"""Of a transformer: attention, a network of four times the width, two norms."""

VIT_L_14 = 3 * 14 * 14 * WIDTH + WIDTH + (16 * 16 + 1) * WIDTH + 24 * BLOCK + 2 * norm(WIDTH)
"""Patches, class token, positions, blocks, a norm before and one after them."""

BIOGPT = 42384 * WIDTH + (1024 + 2) * WIDTH + 24 * BLOCK + norm(WIDTH)
"""Words, positions (two are reserved), blocks, a norm."""

EXPERTS = 8 * (linear(2 * DIM, 4096) + linear(4096, 2 * DIM))


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.fixture(scope="module")
def model():
    with torch.device("meta"):
        return random_model(PRESETS["paper"]())


def test_sizes_of_the_paper_preset(model):
    assert all(parameter.is_meta for parameter in model.parameters())
    assert count(model.image_encoder) == VIT_L_14 == 303_179_776  # that of CLIP, as published
    assert count(model.text_encoder) == BIOGPT == 346_763_264  # that of BioGPT
    assert count(model.experts.experts) == EXPERTS
    assert count(model.experts.router) == 8 * 2 * DIM
    assert count(model.fusion) == 2 * 4 * linear(DIM, DIM)
    assert count(model.gate) == linear(2 * DIM, 2 * DIM)
    assert count(model.head) == linear(2 * DIM, CLASSES)
    positions = 16 * 16 * DIM + 256 * DIM + 2 * DIM  # patches, words, null image and null text
    norms = 2 * norm(DIM) + 2 * norm(2 * DIM)
    rest = 2 * linear(WIDTH, DIM) + positions + norms
    parts = (model.image_encoder, model.text_encoder, model.experts, model.fusion, model.gate, model.head)
    assert count(model) == sum(map(count, parts)) + rest


def test_shapes_of_the_paper_preset(model):
    batch = random_batch(model, 2)
    assert batch.images.shape == (2, 3, 224, 224)
    assert batch.input_ids.shape == (2, 256)
    with torch.device("meta"):
        output = model.eval()(*(None if part is None else part.to("meta") for part in batch.inputs()))
    assert output.logits.shape == (2, CLASSES)
    assert output.routing.expert_ids.shape == (2, 2)
    assert output.stats.tokens_per_expert.shape == (8,)
