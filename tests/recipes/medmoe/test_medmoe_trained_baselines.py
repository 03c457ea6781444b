"""The trainable baselines: what each contrasts, which parts it has, and that every stage takes its runs."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from moekit import global_contrastive_loss
from recipes.data.phantom import phantom_modalities_source
from recipes.medmoe import retrieve
from recipes.medmoe.__main__ import parse_pretrain
from recipes.medmoe.baselines import BASELINES, TINY_BASELINES
from recipes.medmoe.baselines.checks import check_read
from recipes.medmoe.baselines.report_findings import REACH, ReportFindings, findings_of
from recipes.medmoe.build import load_model, new_model
from recipes.medmoe.config import release, tiny
from recipes.medmoe.data.tokens import tokenize
from recipes.medmoe.explain import stage as explain
from recipes.medmoe.few_shot import stage as few_shot
from recipes.medmoe.inference.run import Session
from recipes.medmoe.presets import PRESETS
from recipes.medmoe.pretrain import stage as pretrain
from recipes.medmoe.pretrain.objective import pair_losses
from recipes.medmoe.pretrain.summary import summarise
from recipes.medmoe.probe import stage as probe
from recipes.medmoe.report import write_report
from recipes.medmoe.zero_shot import stage as zero_shot
from recipes.shared.runs import read_metrics
from recipes.shared.semantic_matching import semantic_matching_loss
from tests.recipes.medmoe.conftest import small_config
from tests.recipes.medmoe.test_medmoe_model import TEXTS, batch_of


def small(tmp_path, name: str, **train):
    """A baseline's tiny edition, as small as the tests' own model."""
    base, preset = small_config(tmp_path, **train), PRESETS[f"{name}-tiny"]()
    sizes = {"image_size": 64, "dim": 32} | ({"expert_dim": 16} if name == "one-expert" else {})
    train_settings = {"epochs": 1, "batch_size": 16, "accelerator": "cpu"} | train
    return replace(
        preset,
        out=base.out,
        data=base.data,
        model=replace(preset.model, **sizes),
        train=replace(preset.train, **train_settings),
    )


def model_of(tmp_path, name: str):
    config = small(tmp_path, name)
    torch.manual_seed(0)
    return new_model(config, TEXTS * 2), config


def features_of(model):
    batch = batch_of(model)
    return batch, model(batch.images, batch.tokens, batch.labels)


def test_presets_differ_from_medmoe_in_objective_and_parts_alone():
    assert set(BASELINES) | set(TINY_BASELINES) == set(PRESETS) - {"paper", "release", "tiny"}
    for name in BASELINES:
        for preset, base in ((name, release()), (f"{name}-tiny", tiny())):
            config = PRESETS[preset]()
            assert config.preset == preset
            kept = (
                "image_encoder",
                "image_weights",
                "image_size",
                "text_encoder",
                "text_weights",
                "text_frozen",
                "dim",
            )
            assert [getattr(config.model, field) for field in kept] == [getattr(base.model, field) for field in kept]
            kept = ("epochs", "batch_size", "accumulate", "optimizer", "lr", "weight_decay", "clip_norm", "augment")
            assert [getattr(config.train, field) for field in kept] == [getattr(base.train, field) for field in kept]
            assert config.data == base.data
            check_read(config)
            assert parse_pretrain(["--preset", preset]) == config


@pytest.mark.parametrize("name", ["clip", "convirt", "medclip"])
def test_whole_images_and_texts_alone_have_no_local_branch(tmp_path, name):
    model, config = model_of(tmp_path, name)
    assert not any(
        part in key for key in model.state_dict() for part in ("moe.", "region_projection", "word_projection")
    )
    batch, (image, text, local) = features_of(model)
    assert local is None
    assert model.route(image=image) is None
    with pytest.raises(ValueError, match="has no local branch"):
        model.local(image)
    findings = ReportFindings(["stone", "mass"], model.text_encoder.tokenizer) if name == "medclip" else None
    losses = pair_losses(batch, image, text, local, config.model, config.train, findings=findings)
    assert losses.total == losses.global_loss
    assert losses.local_loss == losses.router_loss == 0


def test_the_scale_of_clip_is_trained_and_bounded(tmp_path):
    model, config = model_of(tmp_path, "clip")
    assert model.scale == pytest.approx(1 / 0.07)
    batch, (image, text, _) = features_of(model)
    loss = pair_losses(batch, image, text, None, config.model, config.train).total
    options = {"logit_scale": 1 / 0.07, "text_ids": batch.text_ids}
    torch.testing.assert_close(loss, 2 * global_contrastive_loss(image.embedding, text.embedding, **options))
    loss.backward()
    assert model.log_scale.grad.abs() > 0
    with torch.no_grad():
        model.log_scale.fill_(9.0)
    assert model.scale == 100


def test_convirt_weights_its_directions_and_projects_twice(tmp_path):
    model, config = model_of(tmp_path, "convirt")
    assert [type(part).__name__ for part in model.image_projection] == ["Linear", "ReLU", "Linear"]
    batch, (image, text, _) = features_of(model.eval())  # dropout off: the states are computed again below
    loss = pair_losses(batch, image, text, None, config.model, config.train).total
    options = {"logit_scale": 10.0, "text_ids": batch.text_ids}
    ways = [
        global_contrastive_loss(image.embedding, text.embedding, directions=way, **options)
        for way in ("image-to-text", "text-to-image")
    ]
    torch.testing.assert_close(loss, 2 * (0.75 * ways[0] + 0.25 * ways[1]))
    # The longest values of the tokens' states, not their mean.
    states = model.text_encoder(batch.tokens.input_ids, batch.tokens.attention_mask.long())
    longest = states.masked_fill(~batch.tokens.attention_mask[..., None], -torch.inf).amax(1)
    torch.testing.assert_close(text.pooled, longest)


def test_medclip_matches_by_findings(tmp_path):
    model, config = model_of(tmp_path, "medclip")
    batch, (image, text, _) = features_of(model)
    findings = ReportFindings(["stone", "liver mass", "nodule"], model.text_encoder.tokenizer)
    named = findings(batch.tokens)
    assert named.tolist() == [[1, 0, 0], [0, 0, 0], [0, 0, 0], [0, 1, 0], [0, 0, 1]]
    loss = pair_losses(batch, image, text, None, config.model, config.train, findings=findings).total
    every = torch.ones(5, dtype=torch.bool)
    expected = semantic_matching_loss(image.embedding, text.embedding, named, every, 1 / 0.07)
    torch.testing.assert_close(loss, 2 * expected)


def test_gloria_projects_one_map(tmp_path):
    model, _ = model_of(tmp_path, "gloria")
    assert model.moe is None
    _, (image, _, local) = features_of(model)
    assert local.routing is None
    expected = F.conv2d(image.maps[1], model.region_projection.weight, model.region_projection.bias)
    torch.testing.assert_close(local.regions, expected)
    other = image._replace(maps=(image.maps[0] + 1, image.maps[1], *(scale * 2 for scale in image.maps[2:])))
    torch.testing.assert_close(model.local(other).regions, expected)


def test_one_expert_takes_all_images(tmp_path):
    model, config = model_of(tmp_path, "one-expert")
    assert model.moe.experts.num_experts == 1
    batch, (image, text, local) = features_of(model)
    assert local.routing is None
    assert local.stats is None
    losses = pair_losses(batch, image, text, local, config.model, config.train)
    assert losses.router_loss == 0
    assert losses.local_loss > 0
    assert model.local(image, need_weights=True).scale_weights.shape[:2] == (5, 2)


def texts_with(model, *texts: str):
    return tokenize(texts, model.text_encoder.tokenizer, 48)


def test_findings_are_whole_words_that_are_not_denied(tmp_path):
    vocabulary = ["no pleural effusion . a stone", "without effusion ; massive mass effect seen here today again"]
    config = small(tmp_path, "medclip")
    model = new_model(config, vocabulary * 2)
    findings = ReportFindings(["pleural effusion", "mass"], model.text_encoder.tokenizer)
    far = " ".join(["seen"] * REACH)
    texts = ["a pleural effusion", "no pleural effusion", "no stone . pleural effusion", "effusion , pleural",
             "massive effect", "Mass .", f"no {far} mass", f"no {far.removesuffix(' seen')} mass"]  # fmt: skip
    named = findings(texts_with(model, *texts)).tolist()
    assert named == [[1, 0], [0, 0], [1, 0], [0, 0], [0, 0], [0, 1], [0, 1], [0, 0]]
    with pytest.raises(ValueError, match=r"knows no word of 'xylophone' \(--findings\)"):
        ReportFindings(["mass", "xylophone"], model.text_encoder.tokenizer)


def test_findings_without_names_are_those_of_the_data(tmp_path):
    source = phantom_modalities_source(train=40, val=4, test=4)
    tokenizer = new_model(small(tmp_path, "medclip"), [*source.train.texts, "small cardiomegaly"] * 2)
    tokenizer = tokenizer.text_encoder.tokenizer
    drawn = findings_of(source, (), tokenizer)
    assert set(drawn) == {name for name in source.train.findings if name}
    assert findings_of(source, ("mass",), tokenizer) == ["mass"]
    other = new_model(small(tmp_path, "medclip"), ["a plaque", "plaque"]).text_encoder.tokenizer
    assert findings_of(source, (), other) == [name for name in drawn if name == "plaque"]

    class Plain:
        texts = ("Small effusion, no pneumonia.", "Effusion (small) 2 cm", "cardiomegaly", "effusion", None, "a b")

    words = findings_of(replace(source, train=Plain()), (), tokenizer)
    assert words == ["small"]  # effusion is in most texts, pneumonia and cardiomegaly in one


@pytest.mark.parametrize(
    ("preset", "arguments", "named"),
    [
        ("clip-tiny", ["--local-weight", "2"], r"local_weight \(--local-weight\) is not read with --local-branch none"),
        ("gloria-tiny", ["--num-experts", "8"], r"num_experts \(--num-experts\) is not read with --local-branch map"),
        ("one-expert-tiny", ["--router-weight", "2"], "router_weight .* not read with --local-branch one-expert"),
        ("tiny", ["--findings", "mass"], "findings .* not read with --global-targets pairs"),
        ("medclip-tiny", ["--global-directions", "image-to-text"], "not read with --global-targets findings"),
        ("paper", ["--image-to-text-weight", "0.7"], "not read with --global-directions image-to-text"),
    ],
)
def test_settings_that_nothing_reads_are_refused(preset, arguments, named):
    with pytest.raises(ValueError, match=named):
        check_read(parse_pretrain(["--preset", preset, *arguments]))


def test_a_scale_that_the_encoder_lacks_is_refused(tmp_path):
    config = small(tmp_path, "gloria")
    with pytest.raises(ValueError, match=r"align_to \(--align-to\) must be a scale of the encoder, 0 to 3, got 4"):
        new_model(replace(config, model=replace(config.model, align_to=4)), TEXTS)


@pytest.mark.slow
@pytest.mark.parametrize("name", BASELINES)
def test_every_stage_takes_a_baseline(tmp_path, name):
    """Trains each baseline for an epoch: half a minute."""
    config = small(tmp_path / name, name)
    (run,) = pretrain.main(config)
    assert "no experts" in summarise(run)
    session = Session.open(run)
    assert (session.name, session.route_on, session.is_run) == (f"{name}-tiny", "none", True)
    local = config.model.local_branch != "none"
    scorings = ("mean", "gloria", "combined") if local else ("mean",)
    for scoring in scorings:
        section = zero_shot.main(run, set=("phantom-ct",), scoring=scoring, bootstrap=20)
        assert 0 <= section["accuracy"] <= 1
        assert section["route_on"] == "none"
    if not local:
        for scoring in ("gloria", "combined"):
            with pytest.raises(ValueError, match="local scores"):
                zero_shot.main(run, set=("phantom-ct",), scoring=scoring, bootstrap=20)
    for score in ("global", "global+local") if local else ("global",):
        assert retrieve.main(run, score=score)["route_on"] == "none"
    probe.main(run, set=("phantom-ct",), features="both", fractions=(1.0,))
    few_shot.main(run, set=("phantom-ct",), shots=(1,), draws=1)
    explained = explain.main(run, count=2, bootstrap=20)
    assert explained.pointing_game["rounds"] > 0
    write_report(run)
    assert "has no experts to choose from" in (run / "report.html").read_text()
    metrics = read_metrics(run)
    assert metrics["run"]["local_branch"] == config.model.local_branch
    assert metrics["routing"] is None
    with np.load(run / "explain" / "examples.npz") as kept:
        assert kept["word_maps"].shape[0] == 2
        assert kept["scale_weights"].shape[1] == (2 if name == "one-expert" else 0)
    loaded, kept = load_model(run)[0].state_dict(), session.model.state_dict()
    assert all(torch.equal(loaded[name], kept[name]) for name in kept)
