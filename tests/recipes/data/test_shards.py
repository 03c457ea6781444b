import json
import os
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from recipes.data.pairs import BadSample, PairSource, PairSplit, PairStream
from recipes.data.tables.pairs import pair_manifest_source
from recipes.data.tars.shards import TarShards, shard_source

REAL = os.environ.get("MOEKIT_REAL_DATA")


def texts(stream, *, seed=0, epoch=0, part=0, num_parts=1):
    return [study.text for study in stream.iterate(seed=seed, epoch=epoch, part=part, num_parts=num_parts)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory, tars):
    """Patterns of tars by how many samples they hold."""
    made = {}

    def make(counts):
        if counts not in made:
            made[counts] = tars.write_many(tmp_path_factory.mktemp("tars"), counts)
        return made[counts]

    return make


@settings(max_examples=40)
@given(
    counts=st.sampled_from([(1,), (5,), (3, 4), (2, 0, 3), (4, 1, 3, 2), (2, 2, 2, 2, 2)]),
    num_parts=st.integers(1, 7),
    buffer=st.integers(1, 6),
    seed=st.integers(0, 2**40),
)
def test_every_sample_goes_to_exactly_one_reader(folders, counts, num_parts, buffer, seed):
    stream = TarShards(folders(counts), shuffle_buffer=buffer)
    parts = [texts(stream, seed=seed, epoch=3, part=part, num_parts=num_parts) for part in range(num_parts)]
    everything = [f"{tar}-{key}" for tar, count in enumerate(counts) for key in range(count)]
    assert sorted(text for part in parts for text in part) == everything
    if num_parts > len(counts):
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_seed_and_epoch_decide_the_order(folders):
    stream = TarShards(folders((20, 20, 20)), shuffle_buffer=8)
    assert isinstance(stream, PairStream)
    order = texts(stream, seed=1, epoch=2)
    assert texts(stream, seed=1, epoch=2) == order
    assert sorted(order) == sorted(texts(stream, seed=1, epoch=3)) == sorted(texts(stream, seed=2, epoch=2))
    assert order not in (texts(stream, seed=1, epoch=3), texts(stream, seed=2, epoch=2), sorted(order))
    starts = {texts(stream, epoch=epoch)[0][0] for epoch in range(30)}
    assert starts == {"0", "1", "2"}


def test_the_buffer_bounds_how_far_a_sample_comes_forward(folders):
    plain = texts(TarShards(folders((40,)), shuffle_buffer=1))
    assert plain == [f"0-{key}" for key in range(40)]
    mixed = texts(TarShards(folders((40,)), shuffle_buffer=5))
    keys = [int(text[2:]) for text in mixed]
    assert keys != sorted(keys)
    assert all(key <= place + 4 for place, key in enumerate(keys))


def test_streams_are_lazy(folders, tars, tmp_path):
    stream = TarShards(tars.write_many(tmp_path, [3, 3]), shuffle_buffer=2)
    reading = stream.iterate(seed=0, epoch=0, part=0, num_parts=1)
    first = next(reading)
    other = next(shard.path for shard in stream.shards if not first.id.startswith(str(shard.path)))
    other.unlink()
    rest = list(reading)
    assert [item.key for item in rest if isinstance(item, BadSample)] == [str(other)]
    assert len(rest) == 3


class Reader(IterableDataset):
    """Deals a stream to the workers of a DataLoader, as training does."""

    def __init__(self, stream):
        self.stream = stream

    def __iter__(self):
        worker = get_worker_info()
        return (item.id for item in self.stream.iterate(seed=0, epoch=1, part=worker.id, num_parts=worker.num_workers))


def test_two_workers_give_each_sample_once(folders):
    stream = TarShards(folders((4, 3, 5)))
    loader = DataLoader(Reader(stream), batch_size=4, num_workers=2, generator=torch.Generator())
    result = [study for batch in loader for study in batch]
    assert sorted(result) == sorted(study.id for study in stream.iterate(seed=0, epoch=0, part=0, num_parts=1))
    assert len(set(result)) == 12


@pytest.mark.parametrize("num_parts", [1, 2, 3, 5])
def test_each_kind_of_damage_is_reported_once_and_nothing_else_is_lost(tmp_path, tars, num_parts):
    damaged = [("1.png", b"?"), ("1.txt", b"t"), ("2.png", tars.png(1)), ("3.png", tars.png(1)), ("3.json", b"{"),
               ("4.png", tars.png(1)), ("4.txt", b" "), ("README", b"")]  # fmt: skip
    tars.write(tmp_path / "a.tar", [*tars.pair("0", "kept"), *damaged, *tars.pair("5", "kept")])
    cut = tars.write(tmp_path / "b.tar", [*tars.pair("0", "kept"), *tars.pair("1")])
    cut.write_bytes(cut.read_bytes()[: 2 * 1024 + 540])
    (tmp_path / "c.tar").write_bytes(b"")
    stream = TarShards(str(tmp_path / "*.tar"))
    items = [
        item for part in range(num_parts) for item in stream.iterate(seed=0, epoch=0, part=part, num_parts=num_parts)
    ]
    bad = {item.key.removeprefix(f"{tmp_path}/"): item.reason for item in items if isinstance(item, BadSample)}
    assert sorted(bad) == ["a.tar/1", "a.tar/2", "a.tar/3", "a.tar/4", "a.tar/README", "b.tar/1", "c.tar"]
    assert [item.text for item in items if not isinstance(item, BadSample)] == ["kept"] * 3
    assert len(items) == 10
    for key, reason in {
        "a.tar/1": "cannot identify its kind",
        "a.tar/2": "has no .txt and no .json",
        "a.tar/3": "its .json is invalid",
        "a.tar/4": "has no text",
        "a.tar/README": "has no file ending",
        "b.tar/1": "is cut off: the shard ends within '1.png'",
        "c.tar": "cannot be read as a tar: empty file",
    }.items():
        assert reason in bad[key]


def test_first_texts_come_from_every_tar(folders):
    stream = TarShards(folders((2, 6, 6)))
    assert stream.first_texts(3) == ["0-0", "1-0", "2-0"]
    assert stream.first_texts(8) == ["0-0", "0-1", "1-0", "1-1", "1-2", "2-0", "2-1", "2-2"]
    assert len(stream.first_texts(100)) == 14
    assert stream.first_texts(2) == ["0-0", "1-0"]
    assert stream.first_texts(0) == []


def test_first_texts_pass_over_bad_samples(tmp_path, tars):
    tars.write(tmp_path / "a.tar", [("0.png", b"?"), *tars.pair("1", "kept")])
    assert TarShards(tmp_path / "a.tar").first_texts(5) == ["kept"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"part": 2}, "part must be in 0 .. num_parts - 1, got part=2 and num_parts=2"),
        ({"part": -1}, "part must be in 0 .. num_parts - 1, got part=-1"),
        ({"num_parts": 0, "part": 0}, "got part=0 and num_parts=0"),
        ({"seed": -1}, "seed and epoch must not be negative, got seed=-1 and epoch=0"),
        ({"epoch": -1}, "seed and epoch must not be negative, got seed=0 and epoch=-1"),
    ],
)
def test_refuses_readers_that_cannot_be(folders, arguments, message):
    stream = TarShards(folders((1,)))
    with pytest.raises(ValueError, match=message):
        stream.iterate(**({"seed": 0, "epoch": 0, "part": 0, "num_parts": 2} | arguments))


def test_refuses_a_buffer_of_nothing_and_patterns_of_nothing(folders, tmp_path):
    with pytest.raises(ValueError, match=r"shuffle_buffer must be at least 1 \(no shuffling\), got 0"):
        TarShards(folders((1,)), shuffle_buffer=0)
    with pytest.raises(ValueError, match=r"pattern '.*' matches no file"):
        TarShards(str(tmp_path / "*.tar"))


def three(tmp_path, tars, **groups):
    """One tar per split, each with two pairs; ``groups`` names a split's group."""
    for split in ("train", "val", "test"):
        fields = {"group": groups[split]} if split in groups else {"modality": " XRay "}
        files = [*tars.pair("0", f"{split} 0", **fields), *tars.pair("1", f"{split} 1", modality="ct")]
        tars.write(tmp_path / f"{split}.tar", files)
    return {split: tmp_path / f"{split}.tar" for split in ("train", "val", "test")}


def test_a_source_of_three_patterns(tmp_path, tars):
    source = shard_source(**three(tmp_path, tars), shuffle_buffer=1)
    assert isinstance(source, PairSource)
    assert isinstance(source.train, PairStream)
    assert isinstance(source.val, PairSplit)
    assert (source.name, source.modalities) == ("shards", ("ct", "xray"))
    assert source.notes == ("training pairs are read as a stream of 1 tars",)
    assert texts(source.train) == ["train 0", "train 1"]
    assert source.test.texts == ("test 0", "test 1")


def test_modalities_of_a_source(tmp_path, tars):
    paths = three(tmp_path, tars, train="p0", val="p1", test="p2")
    assert shard_source(**paths).modalities == ("ct",)
    assert shard_source(**paths, modality="MRI").modalities == ("ct", "mri")
    assert shard_source(**(paths | {"train": {"fundus": paths["train"]}})).modalities == ("ct", "fundus")
    assert shard_source(**paths, modalities=["XRAY", "ct"]).modalities == ("ct", "xray")
    with pytest.raises(ValueError, match=r"modalities: \['ct'\] occur in shards, but got \['xray'\] only"):
        shard_source(**paths, modalities=["xray"])


def test_training_never_sees_a_group_of_validation_or_test(tmp_path, tars):
    source = shard_source(**three(tmp_path, tars, train="p1", val="p1"))
    items = list(source.train.iterate(seed=0, epoch=0, part=0, num_parts=1))
    kept, bad = items if isinstance(items[1], BadSample) else items[::-1]
    assert kept.text == "train 1"
    assert bad == (f"{tmp_path / 'train.tar'}/0", "its group 'p1' is held out for validation or test")


def test_validation_and_test_share_neither_group_nor_tar(tmp_path, tars):
    paths = three(tmp_path, tars, val="p1", test="p1")
    with pytest.raises(ValueError, match=r"mine: groups must not cross splits.*'p1' \(val and test\)"):
        shard_source(**paths, name="mine")
    for split, other in (("train", "val"), ("val", "test")):
        twice = paths | {split: paths[other]}
        with pytest.raises(ValueError, match=rf"the tar '.*{other}\.tar' is in two splits \({split} and {other}\)"):
            shard_source(**twice)


def test_what_was_skipped_in_validation_is_noted(tmp_path, tars):
    paths = three(tmp_path, tars)
    tars.write(paths["val"], [*tars.pair("0"), ("1.png", b"?")])
    notes = shard_source(**paths).notes
    assert notes[0].startswith("val: skipped 1 that cannot be read, kept 1 samples (")


@pytest.mark.skipif(not REAL, reason="MOEKIT_REAL_DATA, the folder of the real sets, is unset")
def test_real_images_come_back_identical(tmp_path, tars):
    split = pair_manifest_source(Path(REAL) / "multimodal_manifest.csv", group_column="group").test
    files = []
    for index, path in islice(enumerate(split.paths), 0, None, 8):
        text = {"caption": split.texts[index], "modality": split.modalities[index], "group": split.groups[index]}
        files += [(f"{index:06d}{Path(path).suffix}", Path(path).read_bytes()), (f"{index:06d}.json", text)]
    write_real(tars, tmp_path / "real.tar", files)
    studies = list(TarShards(tmp_path / "real.tar").iterate(seed=0, epoch=0, part=0, num_parts=1))
    assert len(studies) == 23
    for study in studies:
        index = int(study.id[-6:])
        expected = split[index]
        assert (study.text, study.modality, study.group) == (expected.text, expected.modality, expected.group)
        np.testing.assert_array_equal(study.image, expected.image)
    assert len({study.modality for study in studies}) >= 4


def write_real(tars, path, files):
    tars.write(path, [(name, json.dumps(data).encode() if isinstance(data, dict) else data) for name, data in files])
