"""Studies without image or text: what is missing has no influence, and dropout is drawn by seed, epoch and study."""

import shutil

import numpy as np
import pytest
import torch

from recipes.data.phantom import phantom_source
from recipes.medvlmoe.build import load_model
from recipes.medvlmoe.data import Batch, StudyDataset, collate
from recipes.medvlmoe.modalities import ONLY, ModalityDropout, check_rates, fill_missing
from recipes.shared.encoders.text import load_text_encoder
from tests.recipes.medvlmoe.test_medvlmoe_model import BATCH, build, inputs

NO_SECOND_IMAGE = torch.tensor([True, False, True])
VARIANTS = [
    {},
    {"route_on": "token"},
    {"cross_attention": "summary"},
    {"variant": "no-fusion"},
    {"variant": "no-moe"},
    {"residual": False},
]


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_what_is_in_the_slot_of_a_missing_image_changes_nothing(options, training):
    model = build(dropout=0.0, **options).train(training)
    images, ids, mask = inputs(model)

    def logits():
        torch.manual_seed(2)  # the text encoder has a dropout of its own
        return model(images, ids, mask, NO_SECOND_IMAGE).logits

    reference = logits()
    for content in (7.0, float("inf"), float("nan")):
        images[1] = content
        assert torch.equal(reference, logits())


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_what_is_in_the_slot_of_a_missing_text_changes_nothing(options):
    model = build(**options)
    images, ids, mask = inputs(model)
    mask[1] = False
    reference = model(images, ids, mask).logits
    ids[1] = 9
    assert torch.equal(reference, model(images, ids, mask).logits)


def test_all_images_present_is_the_same_as_no_mask():
    model = build()
    batch = inputs(model)
    assert torch.equal(model(*batch).logits, model(*batch, torch.ones(BATCH, dtype=torch.bool)).logits)


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_a_batch_of_full_and_partial_studies_equals_its_studies_one_by_one(options):
    model = build(**options)
    images, ids, mask = inputs(model)
    mask[2] = False
    whole = model(images, ids, mask, NO_SECOND_IMAGE).logits
    for row in range(BATCH):
        one = slice(row, row + 1)
        alone = model(images[one], ids[one], mask[one], NO_SECOND_IMAGE[one]).logits
        torch.testing.assert_close(whole[one], alone, atol=1e-5, rtol=1e-4)


def test_a_missing_image_takes_the_null_image_which_learns():
    model = build()
    images, ids, mask = inputs(model)
    full = model(images, ids, mask).logits
    partial = model(images, ids, mask, NO_SECOND_IMAGE).logits
    torch.testing.assert_close(full[[0, 2]], partial[[0, 2]], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(full[1], partial[1], atol=1e-3)
    partial[1].sum().backward()
    assert model.null_image.grad.abs().max() > 0
    with torch.no_grad():
        model.null_image += 1
    assert torch.equal(full, model(images, ids, mask).logits)


def test_without_an_image_no_patch_is_looked_at():
    model = build()
    output = model(*inputs(model), NO_SECOND_IMAGE, need_attention=True)
    torch.testing.assert_close(output.attention.sum(1), torch.tensor([1.0, 0.0, 1.0]))


def test_vision_only_has_nothing_but_images():
    model = build(variant="vision-only")
    with pytest.raises(ValueError, match="image_mask must be None for the variant vision-only"):
        model(*inputs(build()), NO_SECOND_IMAGE)


def test_missing_images_are_filled_by_present_ones_and_by_zeros_where_there_is_none():
    images = torch.arange(4.0).view(4, 1)
    present = torch.tensor([False, True, False, True])
    assert fill_missing(images, present).flatten().tolist() == [1, 1, 1, 3]
    assert not fill_missing(images, torch.zeros(4, dtype=torch.bool)).any()


def test_dropout_is_drawn_by_seed_epoch_and_study_and_never_takes_both():
    dropout = ModalityDropout(image=0.2, text=0.3, seed=4)
    draws = [[dropout.left_out(epoch, index) for index in range(2000)] for epoch in range(2)]
    assert draws[0] == [dropout.left_out(0, index) for index in range(2000)]
    assert draws[0] != draws[1]
    assert draws[0] != [dropout._replace(seed=5).left_out(0, index) for index in range(2000)]
    for epoch in draws:
        assert epoch.count("image") / 2000 == pytest.approx(0.2, abs=0.03)
        assert epoch.count("text") / 2000 == pytest.approx(0.3, abs=0.03)
    assert {ONLY["text"].left_out(0, i) for i in range(50)} == {"image"}
    assert {ONLY["image"].left_out(0, i) for i in range(50)} == {"text"}


def test_a_data_set_leaves_out_one_modality_of_studies_that_have_both():
    source = phantom_source(train=12, val=4, test=4, size=64)
    encoder = load_text_encoder("tiny", texts=list(source.train.texts))
    spec = build(text=False).image_encoder.spec
    texts = [None if index == 3 else text for index, text in enumerate(source.train.texts)]
    common = {"tokenizer": encoder.tokenizer, "spec": spec, "text_tokens": 16}
    plain = StudyDataset(source.train, texts, **common)
    assert collate([plain[0, i] for i in range(4)], 64).image_mask is None
    dropped = StudyDataset(source.train, texts, dropout=ONLY["text"], **common)
    batch = collate([dropped[0, i] for i in range(4)], 64)
    assert batch.image_mask.tolist() == [False, False, False, True]  # the last has no text, so it keeps its image
    assert not batch.images[:3].any()
    assert torch.equal(batch.images[3], plain[0, 3][0])
    texts_gone = StudyDataset(source.train, texts, dropout=ONLY["image"], **common)
    batch = collate([texts_gone[0, i] for i in range(4)], 64)
    assert not batch.text_mask.any()
    assert batch.image_mask is None


@pytest.mark.parametrize(
    ("rates", "reads_text", "message"),
    [
        ((0.6, 0.5), True, "must add up to at most 1, since no study loses both, got 0.6 and 0.5"),
        ((0.1, 0.0), False, "need a model that reads images and texts, got 0.1 and 0.0 for one that reads no text"),
        ((0.0, 0.1), False, r"leave them out, or name the texts \(--text-column\)"),
    ],
)
def test_rates_that_leave_nothing_are_refused(rates, reads_text, message):
    with pytest.raises(ValueError, match=message):
        check_rates(*rates, reads_text=reads_text)


@pytest.mark.slow
def test_a_checkpoint_without_the_null_image_loads(trained_run, tmp_path):
    run = tmp_path / "earlier"
    shutil.copytree(trained_run, run)
    path = run / "checkpoints" / "best.ckpt"
    content = torch.load(path, weights_only=True)
    del content["model"]["null_image"]
    torch.save(content, path)
    model = load_model(run)[0]
    assert model.null_image.abs().max() > 0
    del content["model"]["null_text"]
    torch.save(content, path)
    with pytest.raises(ValueError, match=r"1 missing \(such as null_text\)"):
        load_model(run)


def test_batches_move_with_and_without_a_mask_of_images():
    batch = Batch(*(torch.zeros(1) for _ in range(5)))
    assert batch.to(torch.device("cpu")).image_mask is None
    assert batch._replace(image_mask=torch.ones(1)).to(torch.device("meta")).image_mask.is_meta
    assert np.array_equal(batch.inputs()[0], batch.images)
