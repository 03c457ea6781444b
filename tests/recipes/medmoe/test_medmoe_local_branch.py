"""The local branch: its scales, its attention, the trained temperature and the padding that it leaves out."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from moekit import local_contrastive_loss, word_alignment_loss
from recipes.data.images.square import fit_square
from recipes.data.images.transforms import augment, to_tensor
from recipes.medmoe.__main__ import parse_pretrain
from recipes.medmoe.config import paper, release, tiny
from recipes.medmoe.explain.word_maps import word_maps
from recipes.medmoe.inference.run import Session
from recipes.medmoe.label_router import label_routing
from recipes.medmoe.padding import visible_regions
from recipes.medmoe.pretrain import stage
from tests.recipes.medmoe.conftest import small_config
from tests.recipes.medmoe.test_medmoe_model import TEXTS, batch_of, losses_of, model_of

FORMS = {"local_scales": (0, 1), "attention": "cosine", "learned_temperature": True, "mask_padding": True}


def image(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(20, 256, (height, width)).astype(np.uint8)


def letter_boxed(model, images: torch.Tensor) -> torch.Tensor:
    """The same images with black bars above and below, a quarter of the side each."""
    images = images.clone()
    images[:, :, :16] = images[:, :, 48:] = images.amin()
    return images


def test_the_presets_of_the_papers_keep_the_printed_forms():
    for preset in (paper, release):
        model = preset().model
        assert (model.local_scales, model.attention) == ((), "dot")
        assert not model.learned_temperature
        assert not model.mask_padding
        assert model.temperatures == (4.0, 5.0, 10.0)


def test_the_demo_takes_what_makes_maps_point():
    config = tiny()
    assert (config.model.local_scales, config.model.attention, config.model.temperatures[0]) == ((0, 1), "cosine", 10.0)
    assert config.model.mask_padding
    assert (config.train.epochs, config.train.patience) == (30, 30)


def test_options_of_the_command_line_reach_the_model(tmp_path):
    arguments = [
        "--local-scales",
        "0",
        "1",
        "--attention",
        "cosine",
        "--learned-temperature",
        "--mask-padding",
        "--preset",
        "release",
    ]
    model = parse_pretrain(arguments).model
    assert {name: getattr(model, name) for name in FORMS} == FORMS


def test_the_experts_read_the_scales_that_are_named(tmp_path):
    model, _ = model_of(tmp_path, local_scales=(0, 1))
    model.eval()
    seen = model.encode_images(batch_of(model).images)
    routing = label_routing(torch.zeros(5, dtype=torch.int64), 6)
    local = model.local(seen, routing, need_weights=True)
    assert local.scale_weights.shape[1] == 2
    other = seen._replace(maps=(*seen.maps[:2], *(torch.randn_like(x) for x in seen.maps[2:])))
    torch.testing.assert_close(model.local(other, routing).regions, local.regions)
    other = seen._replace(maps=(seen.maps[0] + 1, *seen.maps[1:]))
    assert (model.local(other, routing).regions - local.regions).abs().max() > 1e-3


@pytest.mark.parametrize("scales", [(0, 2), (1, 0), (1, 4)])
def test_scales_that_do_not_fit_name_their_options(tmp_path, scales):
    message = r"local_scales must be ascending, from 0 to 3, and hold align_to=1, got .*\(--local-scales, --align-to\)"
    with pytest.raises(ValueError, match=message):
        model_of(tmp_path, local_scales=scales)


def test_bars_of_letter_boxes_are_seen_also_after_augmentation():
    model_size, grid = 64, (8, 8)
    spec = type("Spec", (), {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)})
    boxed = fit_square(image(64, 128), model_size)
    rows = torch.tensor([False] * 2 + [True] * 4 + [False] * 2)
    for picture in (boxed, np.repeat(boxed[..., None], 3, -1), np.clip(boxed.astype(int) + 9, 0, 255).astype(np.uint8)):
        visible = visible_regions(to_tensor(picture, spec)[None], grid)
        assert torch.equal(visible[0], rows[:, None].expand(8, 8))
    assert torch.equal(visible_regions(to_tensor(boxed.T, spec)[None], grid)[0], rows.expand(8, 8))
    assert visible_regions(to_tensor(image(64, 64), spec)[None], grid).all()
    assert visible_regions(torch.zeros(1, 3, 64, 64), grid).all()
    for seed in range(5):
        turned = augment(fit_square(image(32, 128), model_size), np.random.default_rng(seed))
        visible = visible_regions(to_tensor(turned, spec)[None], grid)[0]
        assert not visible[[0, 7]].any()
        assert visible[3:5].any(1).all()


@pytest.mark.parametrize("local_form", ["batch", "report"])
def test_padding_takes_no_part_in_the_local_contrast(tmp_path, local_form):
    """What the experts make of the padding may be anything."""
    model, config = model_of(tmp_path, attention="cosine", mask_padding=True)
    model.eval()
    batch = batch_of(model)
    batch = batch._replace(images=letter_boxed(model, batch.images))
    seen, text, local = model(batch.images, batch.tokens, batch.labels.clamp(min=0))
    assert local.region_mask.float().mean() == 0.5
    train = replace(config.train, local_form=local_form)
    other = torch.where(local.visible.unsqueeze(1), local.regions, torch.randn_like(local.regions))
    losses = [
        stage.pair_losses(batch, seen, text, one, config.model, train).local_loss
        for one in (local, local._replace(regions=other), local._replace(visible=None))
    ]
    torch.testing.assert_close(losses[0], losses[1])
    assert abs(losses[0] - losses[2]) > 1e-4


def test_the_local_loss_is_that_of_the_options(tmp_path):
    model, config = model_of(tmp_path, **FORMS, temperatures=(6.0, 1.0, 20.0))
    model.eval()
    batch = batch_of(model)
    batch = batch._replace(images=letter_boxed(model, batch.images))
    with torch.no_grad():
        model.log_temperature.fill_(1.0)
    seen, text, local = model(batch.images, batch.tokens, batch.labels)
    losses = stage.pair_losses(batch, seen, text, local, config.model, config.train)
    expected = local_contrastive_loss(
        local.regions.flatten(2).mT,
        text.words,
        text.mask,
        temperatures=(torch.e, 1.0, 20.0),
        word_softmax=False,
        similarity="cosine",
        region_mask=local.visible.flatten(1),
        text_ids=batch.text_ids,
    )
    torch.testing.assert_close(losses.local_loss, 2 * expected.loss)
    losses.total.backward()
    assert model.log_temperature.grad.abs() > 0
    printed = stage.pair_losses(
        batch, seen, text, local, config.model, replace(config.train, local_form="report")
    ).local_loss
    aligned = word_alignment_loss(
        local.places,
        text.words,
        text.mask,
        temperature=1 / 20,
        similarity="cosine",
        region_mask=local.region_mask,
    )
    torch.testing.assert_close(printed, aligned.loss)


def test_the_temperature_starts_where_it_is_told_and_is_not_decayed(tmp_path):
    model, config = model_of(tmp_path, learned_temperature=True, temperatures=(7.0, 1.0, 20.0))
    assert model.log_temperature.exp().item() == pytest.approx(7.0)
    groups = stage.make_optimizer(model, config.train).param_groups
    (own,) = [group for group in groups if any(p is model.log_temperature for p in group["params"])]
    assert own["weight_decay"] == 0


def test_a_trained_temperature_needs_the_form_that_has_one(tmp_path):
    config = small_config(tmp_path, local_form="report")
    config = replace(config, model=replace(config.model, learned_temperature=True))
    with pytest.raises(ValueError, match="leave out --learned-temperature, or give --local-form batch"):
        stage.main(config)


def test_maps_and_scores_of_a_run_are_those_of_its_local_branch(tmp_path):
    model, config = model_of(tmp_path, **FORMS, temperatures=(6.0, 1.0, 20.0))
    model.eval()
    with torch.no_grad():
        model.log_temperature.fill_(2.0)
    session = Session(tmp_path, config, model.requires_grad_(False), torch.device("cpu"))
    images = model.encode_images(letter_boxed(model, batch_of(model).images))
    text = session.texts(TEXTS)
    routing = model.route(image=images)
    local = model.local(images, routing)
    contrast = local_contrastive_loss(
        local.places,
        text.words,
        text.mask,
        temperatures=(torch.e**2, 1.0, 20.0),
        word_softmax=False,
        similarity="cosine",
        region_mask=local.region_mask,
        need_attention=True,
    )
    maps = word_maps(session, images, text, routing)
    torch.testing.assert_close(maps.maps.flatten(2), contrast.attention)
    assert (maps.maps[:, :, 0] == 0).all()
    assert maps.scale_weights.shape[1] == 2
    torch.testing.assert_close(session.word_region_scores(local, text), contrast.scores)


def test_losses_of_a_run_without_the_options_are_what_they_were(tmp_path):
    """All scales named, and cosines off: the printed forms, whichever way they are asked for."""
    model, config = model_of(tmp_path)
    named, _ = model_of(tmp_path, local_scales=(0, 1, 2, 3))
    named.load_state_dict(model.state_dict())
    for one in (model, named):
        one.eval()
    torch.testing.assert_close(losses_of(named, config).total, losses_of(model, config).total)
