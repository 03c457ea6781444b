"""Batches of pairs, from splits and from streams."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from recipes.data.pairs import PairSource, PairStream
from recipes.data.phantom import phantom_modalities_source
from recipes.data.sampling import EpochSampler, stratified
from recipes.data.studies import Study
from recipes.medmoe.config import DataConfig, tiny
from recipes.medmoe.data.batches import UNKNOWN, PairDataset, PairReader, StreamDataset, text_id
from recipes.medmoe.data.loaders import make_loader, set_epoch, train_loader
from recipes.medmoe.data.sources import build_source, train_texts
from recipes.shared.encoders.image import ImageEncoderSpec
from recipes.shared.encoders.text import load_text_encoder
from tests.recipes.medmoe.conftest import small_config

MODALITIES = ("xray", "ct", "mri", "ultrasound")
SPEC = ImageEncoderSpec("test_resnet", 64)


@pytest.fixture(scope="module")
def source() -> PairSource:
    return phantom_modalities_source(train=12, val=4, test=4, size=64)


@pytest.fixture(scope="module")
def reader(source) -> PairReader:
    tokenizer = load_text_encoder("tiny-bert", texts=train_texts(source) * 2).tokenizer
    return PairReader(MODALITIES, tokenizer, SPEC, 24)


class Stream(PairStream):
    """Twelve pairs, the sixth of which cannot be read."""

    def __len__(self):
        return 12

    def __getitem__(self, place):
        if place == 5:
            raise ValueError("a.tar/5: no image")
        image = np.full((40, 64), place, np.uint8)
        return Study(str(place), str(place), image, f"pair {place}", np.zeros(0, np.float32), (), KINDS[place])

    def modality_of_each(self):
        return KINDS

    def shuffle(self, rng):
        return rng.permutation(12)


KINDS = ["ct"] * 8 + ["mri", "mri", "xray", None]


class EmptyStream(Stream):
    def __getitem__(self, place):
        raise ValueError("no image")


def loaded(stream, reader, config, *, rank=0, world_size=1, epochs=(0,)):
    """Batches of each epoch, by the loader that training makes."""
    source = PairSource("stream", MODALITIES, stream, stream, stream)
    loader, batches = train_loader(config, source, reader, rank=rank, world_size=world_size)
    lists = []
    for epoch in epochs:
        set_epoch(loader, epoch)
        lists.append(list(loader))
        assert len(lists[-1]) == batches
    return lists


def stream_config(out, *, steps=None, **train):
    config = small_config(out, **({"batch_size": 4} | train))
    shards = replace(config.data.shards, steps_per_epoch=steps)
    return replace(config, data=replace(config.data, shards=shards))


def test_a_batch_says_modality_and_equal_texts(source, reader):
    dataset = PairDataset(source.train, reader)
    batch = next(iter(make_loader(dataset, replace(tiny().train, batch_size=12), seed=None)))
    assert [MODALITIES[label] for label in batch.labels] == list(source.train.modalities)
    equal = [[a == b for b in source.train.texts] for a in source.train.texts]
    assert (batch.text_ids[:, None] == batch.text_ids[None, :]).tolist() == equal
    assert batch.index.tolist() == list(range(12))


def test_case_and_space_do_not_make_another_text():
    assert text_id("A  stone.\n") == text_id("a stone.")
    assert text_id("a stone.") != text_id("no stone.")
    assert -(2**63) <= text_id("x") < 2**63


def test_an_unknown_modality_is_left_out_and_a_foreign_one_refused(reader):
    assert reader.label(None) == UNKNOWN
    with pytest.raises(ValueError, match="modality 'pet', which is none of xray, ct, mri, ultrasound"):
        reader.label("pet")


def test_a_pair_without_text_is_refused(source, reader):
    class Silent:
        modalities, texts = ("ct",), (None,)

    with pytest.raises(ValueError, match="every pair must have a text"):
        PairDataset(Silent(), reader)


def test_augmentation_depends_on_seed_epoch_and_index_alone(source, reader):
    dataset = PairDataset(source.train, reader, augment_seed=3, cache=True)
    first, again, other = dataset[1, 4].image, dataset[1, 4].image, dataset[2, 4].image
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def places(batches):
    return [batch.index.tolist() for batch in batches]


@pytest.mark.parametrize("steps", [None, 5])
def test_a_stream_holds_every_readable_pair_once_a_pass_whatever_workers_and_ranks(reader, tmp_path, steps):
    config = stream_config(tmp_path, steps=steps)
    alone = loaded(Stream(), reader, config, epochs=range(3))
    flat = [place for epoch in alone for batch in places(epoch) for place in batch]
    for number in range(len(flat) // 12):
        one = flat[12 * number : 12 * (number + 1)]
        assert sorted(one) == [*range(5), 6, *range(6, 12)]  # 6 stands in for 5 too
    assert sum(int(batch.skipped) for epoch in alone for batch in epoch) == len(flat) // 12
    helped = loaded(Stream(), reader, stream_config(tmp_path, steps=steps, workers=2), epochs=(1,))
    assert places(helped[0]) == places(alone[1])
    half = stream_config(tmp_path, steps=steps, batch_size=2)
    ranks = [loaded(Stream(), reader, half, rank=rank, world_size=2, epochs=(1,))[0] for rank in (0, 1)]
    together = [first + second for first, second in zip(*map(places, ranks), strict=True)]
    assert together == places(alone[1])


def test_augmentation_of_a_stream_depends_on_the_pass_and_the_pair_alone(reader, tmp_path):
    config = stream_config(tmp_path, augment=True)
    first, again, later = loaded(Stream(), reader, config, epochs=(0, 0, 1))
    assert all(torch.equal(a.images, b.images) for a, b in zip(first, again, strict=True))
    changed = [not torch.equal(a, b) for a, b in zip(*map(images_by_place, (first, later)), strict=True)]
    assert sum(changed) >= 9  # an image of one value looks the same when it is turned


def images_by_place(batches):
    image_at = {place: batch.images[row] for batch in batches for row, place in enumerate(batch.index.tolist())}
    return [image_at[place] for place in sorted(image_at)]


@pytest.mark.parametrize(("sampling", "present"), [("stratified", ("ct", "mri")), ("balanced", ("ct", "mri", "xray"))])
def test_batches_of_a_stream_hold_the_modalities(reader, tmp_path, sampling, present):
    (batches,) = loaded(Stream(), reader, stream_config(tmp_path, sampling=sampling, batch_size=6))
    assert len(batches) == 2
    for batch in batches:
        assert {MODALITIES.index(name) for name in present} <= set(batch.labels.tolist())


@pytest.mark.parametrize("sampling", ["stratified", "balanced"])
def test_a_split_is_sampled_by_modality_too(source, reader, tmp_path, sampling):
    config = small_config(tmp_path, batch_size=4, sampling=sampling)
    loader, _ = train_loader(config, source, reader, rank=1, world_size=2)
    strata = [MODALITIES.index(name) for name in source.train.modalities]
    shuffle = stratified(strata, balanced=sampling == "balanced")
    expected = EpochSampler(12, 4, seed=0, rank=1, world_size=2, shuffle=shuffle, in_blocks=True)
    set_epoch(loader, 2)
    expected.epoch = 2
    assert places(loader) == [[index for _, index in batch] for batch in expected]


def test_a_stream_without_any_readable_pair_is_an_error(reader):
    with pytest.raises(ValueError, match="12 pairs of the tars in a row cannot be read, the last since no image"):
        StreamDataset(EmptyStream(), reader)[0, 3]


def test_a_foreign_modality_of_a_stream_is_refused_before_training(reader):
    class Foreign(Stream):
        def modality_of_each(self):
            return ["pet"] * 12

    with pytest.raises(ValueError, match="modality 'pet', which is none of xray, ct, mri, ultrasound"):
        StreamDataset(Foreign(), reader)


def test_a_stream_has_the_steps_that_the_settings_say(reader, tmp_path):
    config = stream_config(tmp_path, steps=3, batch_size=2, accumulate=2)
    first, second, again = loaded(Stream(), reader, config, epochs=(0, 1, 0))
    assert len(first) == 6
    assert places(first) == places(again) != places(second)


def test_unknown_data_is_refused():
    with pytest.raises(ValueError, match=r"data must be 'phantom', a .csv, or WebDataset shards \(.tar\), got 'x.zip'"):
        build_source(replace(tiny(), data=DataConfig(data="x.zip")))
