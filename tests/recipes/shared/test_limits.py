"""Settings outside their limits are refused by name, option and value."""

from dataclasses import fields, is_dataclass, replace

import pytest

from recipes.medmoe import presets as medmoe
from recipes.medvlmoe import config as medvlmoe
from recipes.medvlmoe import presets as medvlmoe_presets
from recipes.shared.limits import check_limits


def changed(config, name, value):
    """The settings with one of them, at any depth, replaced."""
    for field in fields(config):
        inner = getattr(config, field.name)
        if field.name == name:
            return replace(config, **{name: value})
        if is_dataclass(inner) and (other := changed(inner, name, value)) is not None:
            return replace(config, **{field.name: other})
    return None


@pytest.mark.parametrize("presets", [medmoe.PRESETS, medvlmoe_presets.PRESETS], ids=["medmoe", "medvlmoe"])
def test_every_preset_keeps_the_limits(presets):
    for preset in presets.values():
        check_limits(preset())


@pytest.mark.parametrize(
    ("name", "value", "limits"),
    [
        ("batch_size", 0, "at least 1"),
        ("epochs", 0, "at least 1"),
        ("epochs", -3, "at least 1"),
        ("accumulate", 0, "at least 1"),
        ("devices", 0, "at least 1"),
        ("workers", -1, "at least 0"),
        ("patience", -1, "at least 0"),
        ("weight_decay", -0.1, "at least 0"),
        ("warmup_epochs", float("nan"), "at least 0"),
        ("clip_norm", float("inf"), "at least 0"),
        ("balance_weight", -1.0, "at least 0"),
        ("seeds", (0, -1), "at least 0"),
        ("train_studies", 0, "at least 1"),
        ("num_experts", 0, "at least 1"),
        ("image_size", 0, "at least 1"),
    ],
)
@pytest.mark.parametrize("recipe", [medmoe, medvlmoe], ids=["medmoe", "medvlmoe"])
def test_values_outside_are_refused(recipe, name, value, limits):
    with pytest.raises(ValueError, match=rf"{name} \(--{name.replace('_', '-')}\) must be {limits}, got"):
        check_limits(changed(recipe.tiny(), name, value))


@pytest.mark.parametrize(
    ("recipe", "name", "value", "message"),
    [
        (medvlmoe, "lr_encoder", -1e-3, r"lr_encoder \(--lr-encoder\) must be at least 0, got -0.001"),
        (medvlmoe, "contrast_epochs", 0, r"contrast_epochs \(--contrast-epochs\) must be at least 1"),
        (medvlmoe, "contrast_lr", -1e-4, r"contrast_lr \(--contrast-lr\) must be at least 0"),
        (medvlmoe, "temperature", 0.0, r"temperature \(--temperature\) must be above 0"),
        (
            medvlmoe,
            "local_temperatures",
            (4.0, 0.0, 10.0),
            r"\(--local-temperatures\) must be above 0",
        ),
        (
            medvlmoe,
            "image_to_text_weight",
            1.5,
            r"\(--image-to-text-weight\) must be between 0 and 1",
        ),
        (medvlmoe, "masked_weight", -0.1, r"masked_weight \(--masked-weight\) must be at least 0"),
        (medvlmoe, "frozen_text_layers", -1, r"frozen_text_layers \(--frozen-text-layers\) must be at least 0"),
        (medvlmoe, "lr_head", -1e-3, r"lr_head \(--lr-head\) must be at least 0"),
        (medvlmoe, "dropout", 1.0, r"dropout \(--dropout\) must be at least 0 and below 1, got 1.0"),
        (medvlmoe, "data_size", 32, r"data_size \(--data-size\) must be 28, 64, 128 or 224, got 32"),
        (medvlmoe, "top_k", 9, r"top_k \(--top-k\) must be at most num_experts \(--num-experts\), 8, got 9"),
        (medmoe, "lr", -1e-3, r"lr \(--lr\) must be at least 0"),
        (medmoe, "temperatures", (4.0, 0.0, 1.0), r"temperatures \(--temperatures\) must be above 0, got 0.0"),
        (medmoe, "steps_per_epoch", 0, r"steps_per_epoch \(--steps-per-epoch\) must be at least 1"),
    ],
)
def test_settings_of_one_recipe_have_limits_too(recipe, name, value, message):
    with pytest.raises(ValueError, match=message):
        check_limits(changed(recipe.tiny(), name, value))
