"""Presets of the baselines, and settings that they refuse."""

import pytest

from recipes.medvlmoe.__main__ import parse_train
from recipes.medvlmoe.baselines import BASELINES, TINY_BASELINES
from recipes.medvlmoe.baselines.checks import check_baseline, without_unread
from recipes.medvlmoe.baselines.stage import check_pairs, contrastive_stage, pair_texts
from recipes.medvlmoe.presets import PRESETS
from recipes.medvlmoe.sources import build_source
from tests.recipes.medvlmoe.baselines.small import small_baseline


def test_every_baseline_is_a_preset_of_both_scales_that_passes_its_checks():
    assert set(PRESETS) == {"paper", "tiny", *BASELINES, *TINY_BASELINES}
    for preset in PRESETS.values():
        check_baseline(preset())
    assert all(PRESETS[name]().model.image_weights == "hub" for name in BASELINES)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            "--preset convirt-tiny --num-experts 4",
            r"num_experts \(--num-experts\) is not read with --preset",
        ),
        ("--preset convirt-tiny --dropout 0.3", r"dropout \(--dropout\) is not read"),
        ("--preset convirt-tiny --balance-weight 1", r"balance_weight \(--balance-weight\) is not read"),
        (
            "--preset convirt-tiny --local-weight 2",
            r"\(--local-weight\) is not read with --objective convirt",
        ),
        ("--preset gloria-tiny --temperature 2", r"temperature \(--temperature\) is not read with --objective gloria"),
        ("--preset biobert-vqa-tiny --contrast-epochs 3", r"contrast_epochs \(--contrast-epochs\) is not read"),
        (
            "--preset biobert-vqa-tiny --temperature 2",
            r"\(--temperature\) is not read with --objective none",
        ),
        ("--preset chexzero-tiny --class-weights balanced", r"class_weights \(--class-weights\) is not read"),
        ("--preset tiny --temperature 0.2", r"\(--temperature\) is not read with --objective none"),
        ("--preset tiny --classifier zero-shot", r"classifier \(--classifier\) 'zero-shot' is trained by a contrast"),
        ("--preset gloria-tiny --learn-temperature", r"\(--learn-temperature\) is for the objectives clip and medclip"),
        ("--preset clip-med-tiny --prompt nothing", r"prompt \(--prompt\) must hold {} once"),
        ("--preset clip-med-tiny --absent no{}{}", r"absent \(--absent\) must hold {} once"),
    ],
)
def test_settings_that_nothing_reads_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        check_baseline(parse_train(arguments.split()))


def test_settings_that_nothing_reads_go_back_to_those_of_the_preset():
    given = [
        "--contrast-epochs",
        "3",
        "--temperature",
        "0.2",
        "--num-experts",
        "4",
        "--z-weight",
        "0.1",
        "--epochs",
        "5",
    ]
    expected = {
        "tiny": {"--contrast-epochs", "--temperature"},
        "convirt-tiny": {"--num-experts", "--z-weight"},
        "gloria-tiny": {"--temperature", "--num-experts", "--z-weight"},
        "chexzero-tiny": {"--contrast-epochs", "--num-experts", "--z-weight"},
    }
    for preset, options in expected.items():
        config, unread = without_unread(parse_train(["--preset", preset, *given]))
        check_baseline(config)
        assert unread == options
        assert config.train.epochs == 5
        if "--temperature" in options:
            assert config.model.contrast == PRESETS[preset]().model.contrast
    assert without_unread(PRESETS["tiny"]()) == (PRESETS["tiny"](), frozenset())


def test_a_contrast_may_come_before_the_full_model(tmp_path):
    config = parse_train(["--preset", "tiny", "--objective", "gloria", "--out", str(tmp_path), "--lr-head", "0.001"])
    check_baseline(config)
    stage = contrastive_stage(config)
    assert stage.out == tmp_path / "contrastive"
    assert stage.model.classifier == "none"
    assert (stage.train.epochs, stage.train.lr_head) == (config.train.contrast_epochs, config.train.contrast_lr)
    assert contrastive_stage(stage) is None


def test_texts_are_those_of_the_data_else_made_of_labels(tmp_path):
    config = small_baseline("convirt", tmp_path)
    source = build_source(config.data, 64)
    assert pair_texts(source.train, source, config) == list(source.train.texts)
    hidden = parse_train(["--preset", "convirt-tiny", "--no-use-text", "--prompt", "a radiograph of {}"])
    assert pair_texts(source.train, source, hidden)[0].startswith("a radiograph of no Pneumonia, ")
    texts = [None] * len(source.train)
    texts[3] = "one text alone"
    with pytest.raises(ValueError, match="'convirt' needs at least 2 training studies with an image and a text, got 1"):
        check_pairs(source.train, texts, "convirt")
