"""Batches: their order, their padding, and which data set a setting opens."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recipes.data.phantom import phantom_source
from recipes.data.sampling import EpochSampler
from recipes.medvlmoe.config import DataConfig, ManifestConfig, PhantomConfig, TrainConfig, tiny
from recipes.medvlmoe.data import StudyDataset, collate, make_loader
from recipes.medvlmoe.sources import build_source, texts_of
from recipes.shared.encoders.image import ImageEncoderSpec
from recipes.shared.encoders.text import load_text_encoder

SPEC = ImageEncoderSpec("any", 64)


@pytest.fixture(scope="module")
def source():
    return phantom_source(train=12, val=6, test=6, size=64)


@settings(deadline=None, max_examples=50)
@given(
    size=st.integers(1, 50),
    batch_size=st.integers(1, 9),
    world_size=st.integers(1, 4),
    seed=st.integers(0, 5),
    epoch=st.integers(0, 3),
)
def test_ranks_share_every_epoch_out_and_take_as_many_steps(size, batch_size, world_size, seed, epoch):
    batches = []
    for rank in range(world_size):
        sampler = EpochSampler(size, batch_size, seed=seed, rank=rank, world_size=world_size)
        sampler.epoch = epoch
        mine = list(sampler)
        assert len(mine) == len(sampler)
        batches.append(mine)
    assert len({len(mine) for mine in batches}) == 1
    seen = [index for mine in batches for batch in mine for _, index in batch]
    assert set(seen) == set(range(size))
    assert len(seen) - size < world_size
    assert {e for mine in batches for batch in mine for e, _ in batch} == {epoch}


def test_the_order_depends_on_seed_and_epoch_alone():
    def order(seed, epoch):
        sampler = EpochSampler(30, 4, seed=seed)
        sampler.epoch = epoch
        return [index for batch in sampler for _, index in batch]

    assert order(0, 1) == order(0, 1)
    assert order(0, 1) != order(0, 2)
    assert order(0, 1) != order(1, 1)


def test_without_a_seed_the_order_is_that_of_the_split_and_nothing_is_repeated():
    sampler = [EpochSampler(7, 2, seed=None, rank=rank, world_size=2) for rank in (0, 1)]
    assert [[i for batch in s for _, i in batch] for s in sampler] == [[0, 2, 4, 6], [1, 3, 5]]


def test_augmentation_changes_with_the_epoch_and_not_with_the_order(source):
    data = StudyDataset(source.train, [None] * 12, None, SPEC, text_tokens=8, augment_seed=3)
    first = data[0, 5][0]
    _ = data[0, 2]
    assert torch.equal(data[0, 5][0], first)
    assert not torch.equal(data[1, 5][0], first)
    plain = StudyDataset(source.train, [None] * 12, None, SPEC, text_tokens=8)
    assert torch.equal(plain[0, 5][0], plain[7, 5][0])


def test_a_cache_changes_nothing(source):
    cached = StudyDataset(source.train, [None] * 12, None, SPEC, text_tokens=8, augment_seed=3, cache=True)
    plain = StudyDataset(source.train, [None] * 12, None, SPEC, text_tokens=8, augment_seed=3)
    for address in ((0, 1), (1, 1), (0, 1)):
        assert torch.equal(cached[address][0], plain[address][0])


def test_batches_hold_studies_and_their_texts(source):
    texts = [text for text in source.train.texts if text]
    tokenizer = load_text_encoder("tiny", texts=texts).tokenizer
    known = [texts[0], None, "  ", *source.train.texts[3:]]
    data = StudyDataset(source.train, known, tokenizer, SPEC, text_tokens=20)
    batch = collate([data[0, i] for i in range(4)], SPEC.size)
    assert batch.images.shape == (4, 3, 64, 64)
    assert batch.index.tolist() == [0, 1, 2, 3]
    assert torch.equal(batch.labels, torch.from_numpy(source.train.labels[:4]))
    assert batch.text_mask.sum(1).tolist()[1:3] == [0, 0]
    words = tokenizer.convert_ids_to_tokens(batch.input_ids[0][batch.text_mask[0]].tolist())
    assert " ".join(words) in " ".join(tokenizer.tokenize(texts[0]))
    assert batch.text_mask.shape[1] <= 20


def test_workers_give_the_same_batches(source):
    config = TrainConfig(batch_size=5, workers=0)
    data = StudyDataset(source.train, [None] * 12, None, SPEC, text_tokens=8, augment_seed=1)
    alone = list(make_loader(data, config, seed=2))
    helped = list(make_loader(data, replace(config, workers=2), seed=2))
    for one, other in zip(alone, helped, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one[:5], other[:5], strict=True))


def test_a_manifest_and_its_sections_are_read(tmp_path):
    from PIL import Image

    for i in range(6):
        Image.fromarray(np.full((20, 30), 40 * i, np.uint8)).save(tmp_path / f"{i}.png")
    rows = [f'{i}.png,"\n FINDINGS:  clear {i}.\n IMPRESSION:  ok {i}.",{i % 2},p{i}' for i in range(6)]
    splits = ["train", "train", "val", "val", "test", "test"]
    lines = ["image,report,sick,patient,split", *(f"{row},{split}" for row, split in zip(rows, splits, strict=True))]
    (tmp_path / "m.csv").write_text("\n".join(lines) + "\n")
    manifest = ManifestConfig(
        text_column="report", text_section="findings", label_columns=("sick",), group_column="patient"
    )
    config = DataConfig(data=str(tmp_path / "m.csv"), manifest=manifest)
    source = build_source(config, 64)
    assert source.classes == ("sick",)
    assert texts_of(source.train, config) == ["clear 0.", "clear 1."]
    assert texts_of(source.train, replace(config, use_text=False)) == [None, None]


def test_a_column_of_texts_that_is_blank_in_training_is_refused(tmp_path):
    """The run would become one of images alone, without a word."""
    from PIL import Image

    splits = ["train", "train", "val", "test"]
    for i in range(4):
        Image.fromarray(np.full((8, 8), 40 * i, np.uint8)).save(tmp_path / f"{i}.png")
    rows = [f"{i}.png,{'a note' if split == 'test' else 'nan'},{split},{i % 2}" for i, split in enumerate(splits)]
    (tmp_path / "m.csv").write_text("\n".join(["image,report,split,sick", *rows]) + "\n")
    manifest = ManifestConfig(text_column="report", label_columns=("sick",))
    config = DataConfig(data=str(tmp_path / "m.csv"), manifest=manifest)
    with pytest.raises(
        ValueError, match=r"column 'report' is blank for all 2 training studies.*--text-column.*--no-use"
    ):
        build_source(config, 64)
    assert build_source(replace(config, use_text=False), 64).train.texts == (None, None)


def test_the_phantom_is_drawn_at_the_encoders_size():
    config = DataConfig(phantom=PhantomConfig(train_studies=3, val_studies=3, test_studies=3))
    assert build_source(config, 80).train[0].image.shape == (80, 80)


def test_an_unknown_data_set_is_an_error_that_lists_the_kinds():
    with pytest.raises(
        ValueError, match=r"data must be 'phantom', 'phantom-hard', a \.csv, an \.npz or the name of a Med"
    ):
        build_source(DataConfig(data="folder/of.images"), 64)


def test_the_tiny_preset_needs_no_hub():
    model = tiny().model
    assert (model.image_weights, model.text_encoder, model.text_weights) == ("random", "tiny", "random")


def test_the_images_of_a_table_may_lie_in_another_folder(tmp_path):
    """CheXpert and MIMIC-CXR keep the table and the images apart."""
    from PIL import Image

    from recipes.medvlmoe.__main__ import parse_train

    (tmp_path / "set" / "train").mkdir(parents=True)
    rows = ["Path,report,split,Edema"]
    reports = ["Findings: clear", "Impression: none"] * 3
    for i, split in enumerate(["train", "train", "val", "val", "test", "test"]):
        Image.fromarray(np.full((16, 16), 40 * i, np.uint8)).save(tmp_path / "set" / "train" / f"{i}.png")
        rows.append(f"set/train/{i}.png,{reports[i]},{split},{i % 2}.0")
    (tmp_path / "set" / "train.csv").write_text("\n".join(rows) + "\n")
    options = ["--data", str(tmp_path / "set" / "train.csv"), "--image-column", "Path", "--label-columns", "Edema"]
    with pytest.raises(ValueError, match=r"6 of 6 images are missing .*Set --image-root to the folder"):
        build_source(parse_train(options).data, 64)
    options += ["--image-root", str(tmp_path), "--text-column", "report", "--text-section", "findings"]
    config = parse_train([*options, "--force-dicom"]).data
    assert config.force_dicom
    source = build_source(config, 64)
    assert source.test[1].image[0, 0] == 200
    assert texts_of(source.train, config) == ["clear", None]
    note = "3 of 6 texts have the section 'findings'; the other studies count as without text"
    assert note in source.notes
    assert note not in build_source(replace(config, use_text=False), 64).notes
