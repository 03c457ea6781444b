"""Batches of pairs, from splits and from streams."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from recipes.data.pairs import BadSample, PairSource
from recipes.data.phantom import phantom_modalities_source
from recipes.data.studies import Study
from recipes.medmoe.config import Config, DataConfig, tiny
from recipes.medmoe.data.batches import (
    UNKNOWN,
    PairDataset,
    PairReader,
    StreamDataset,
    make_loader,
    set_epoch,
    text_id,
    train_loader,
)
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


class Stream:
    """Twelve pairs, the fifth of which cannot be read."""

    def iterate(self, *, seed, epoch, part, num_parts):
        for number in np.random.default_rng((seed, epoch)).permutation(12):
            if number % num_parts != part:
                continue
            if number == 5:
                yield BadSample("a.tar:5", "no image")
                continue
            image = np.full((40, 64), number, np.uint8)
            yield Study(str(number), str(number), image, f"pair {number}", np.zeros(0, np.float32), (), "ct")

    def first_texts(self, count):
        return [f"pair {number}" for number in range(12)][:count]


class EmptyStream(Stream):
    def iterate(self, *, seed, epoch, part, num_parts):
        yield BadSample("a.tar:0", "no image")


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


def test_a_stream_gives_full_batches_and_counts_what_it_skips(reader):
    dataset = StreamDataset(Stream(), reader, 4, seed=0, augmented=False)
    batches = [batch for batch, _ in zip(dataset, range(11), strict=False)]
    assert all(len(batch.labels) == 4 for batch in batches)
    # 44 pairs are four times through the stream; the last bad sample may come behind the last batch.
    assert sum(int(batch.skipped) for batch in batches) in (3, 4)
    ids = torch.cat([batch.text_ids for batch in batches]).tolist()
    assert {ids.count(one) for one in set(ids)} == {4}


def test_ranks_and_workers_share_a_stream(reader):
    seen = []
    for rank in (0, 1):
        dataset = StreamDataset(Stream(), reader, 1, seed=0, augmented=False, rank=rank, world_size=2)
        readable = 5 if rank else 6
        seen += [int(batch.text_ids) for batch, _ in zip(dataset, range(readable), strict=False)]
    assert len(set(seen)) == len(seen) == 11
    loader = DataLoader(StreamDataset(Stream(), reader, 1, seed=0, augmented=False), batch_size=None, num_workers=2)
    helped = [int(batch.text_ids) for batch, _ in zip(loader, range(10), strict=False)]
    assert len(set(helped)) == 10


def test_a_stream_without_any_pair_is_an_error(reader):
    with pytest.raises(ValueError, match="shards of reader 1 of 1 hold no readable pair"):
        next(iter(StreamDataset(EmptyStream(), reader, 2, seed=0, augmented=False)))


def test_a_stream_has_the_steps_that_the_settings_say(source, reader, tmp_path):
    config: Config = small_config(tmp_path, batch_size=2, accumulate=2)
    shards = replace(config.data.shards, steps_per_epoch=3)
    config = replace(config, data=replace(config.data, shards=shards))
    streamed = replace(source, train=Stream())
    loader, batches = train_loader(config, streamed, reader, rank=0, world_size=1)
    assert batches == 6
    orders = []
    for epoch in (0, 1, 0):
        set_epoch(loader, epoch)
        orders.append([batch.text_ids.tolist() for batch, _ in zip(loader, range(5), strict=False)])
    assert orders[0] == orders[2] != orders[1]


def test_unknown_data_is_refused():
    with pytest.raises(ValueError, match=r"data must be 'phantom', a .csv, or WebDataset shards \(.tar\), got 'x.zip'"):
        build_source(replace(tiny(), data=DataConfig(data="x.zip")))
