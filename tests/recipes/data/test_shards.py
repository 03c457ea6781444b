import json
import os
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recipes.data.pairs import BadSample, PairSource, PairSplit, PairStream
from recipes.data.tables.pairs import pair_manifest_source
from recipes.data.tars.shards import TarShards, shard_source

REAL = os.environ.get("MOEKIT_REAL_DATA")


def texts(stream, order=None):
    return [stream[place].text for place in (range(len(stream)) if order is None else order)]


def drawn(stream, *, seed=0, number=0):
    return texts(stream, stream.shuffle(np.random.default_rng((seed, number))))


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
    buffer=st.integers(1, 6),
    seed=st.integers(0, 2**40),
)
def test_every_pass_holds_every_pair_once(folders, counts, buffer, seed):
    stream = TarShards(folders(counts), shuffle_buffer=buffer)
    everything = [f"{tar}-{key}" for tar, count in enumerate(counts) for key in range(count)]
    assert texts(stream) == everything
    assert sorted(drawn(stream, seed=seed)) == everything
    assert sorted(study.text for study in stream.iterate(seed=seed)) == everything


def test_a_seed_decides_the_order(folders):
    stream = TarShards(folders((20, 20, 20)), shuffle_buffer=8)
    assert isinstance(stream, PairStream)
    order = drawn(stream, seed=1, number=2)
    assert drawn(stream, seed=1, number=2) == order
    assert order not in (drawn(stream, seed=1, number=3), drawn(stream, seed=2, number=2), sorted(order))
    starts = {drawn(stream, number=number)[0][0] for number in range(30)}
    assert starts == {"0", "1", "2"}
    listed = [study.text for study in stream.iterate(seed=1)]
    assert listed == [study.text for study in stream.iterate(seed=1)] != sorted(listed)


def test_the_buffer_bounds_how_far_a_pair_moves(folders):
    plain = drawn(TarShards(folders((40,)), shuffle_buffer=1))
    assert plain == [f"0-{key}" for key in range(40)]
    keys = [int(text[2:]) for text in drawn(TarShards(folders((40,)), shuffle_buffer=5))]
    assert keys != sorted(keys)
    assert all(abs(key - place) < 5 for place, key in enumerate(keys))
    listed = [int(study.text[2:]) for study in TarShards(folders((40,)), shuffle_buffer=5).iterate()]
    assert listed != sorted(listed)
    assert all(key <= place + 4 for place, key in enumerate(listed))


def test_an_index_reads_no_image_and_a_tar_that_has_changed_is_named(tars, tmp_path):
    stream = TarShards(tars.write_many(tmp_path, [2, 2]))
    assert stream.build_index() == ()
    first = stream.shards[0].path
    tars.write(first, tars.pair("0", ["one"], modality="ct"))
    with pytest.raises(ValueError, match=r"cannot|has no text|invalid|changed"):  # whatever lies there now
        stream[1]
    first.unlink()
    with pytest.raises(ValueError, match=r"cannot read the tar '.*\.tar'"):
        stream[0]
    assert stream[2].text == "1-0"
    rest = list(stream.iterate())
    assert [item.key for item in rest if isinstance(item, BadSample)] == [str(first)]
    assert len(rest) == 3


@pytest.mark.parametrize("workers", [0, 2])
def test_processes_build_the_same_index(folders, workers):
    stream, alone = TarShards(folders((4, 3, 5))), TarShards(folders((4, 3, 5)))
    assert stream.build_index(workers=workers) == ()
    assert texts(stream) == texts(alone)
    assert stream.modality_of_each() == [None] * 12
    assert [stream[place].id for place in range(12)] == [item.id for item in ordered(alone)]


def ordered(stream):
    """The pairs as `iterate` yields them, in the order of the tars."""
    return sorted(stream.iterate(), key=lambda item: item.id)


def test_each_kind_of_damage_is_reported_once_and_nothing_else_is_lost(tmp_path, tars):
    damaged = [("1.png", b"?"), ("1.txt", b"t"), ("2.png", tars.png(1)), ("3.png", tars.png(1)), ("3.json", b"{"),
               ("4.png", tars.png(1)), ("4.txt", b" "), ("README", b"")]  # fmt: skip
    tars.write(tmp_path / "a.tar", [*tars.pair("0", "kept"), *damaged, *tars.pair("5", "kept")])
    cut = tars.write(tmp_path / "b.tar", [*tars.pair("0", "kept"), *tars.pair("1")])
    cut.write_bytes(cut.read_bytes()[: 2 * 1024 + 540])
    (tmp_path / "c.tar").write_bytes(b"")
    stream = TarShards(str(tmp_path / "*.tar"))
    items = list(stream.iterate())
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
    # The index leaves out all but the image that cannot be decoded, which it does not read.
    (note,) = stream.build_index()
    assert note.startswith("train: left out 6 samples that cannot be read, kept 4 (")
    assert note.endswith("; ...)")
    assert [stream[place].text for place in (0, 2, 3)] == ["kept"] * 3
    with pytest.raises(ValueError, match="cannot identify its kind"):
        stream[1]


def test_captions_and_modalities_keep_their_places(tmp_path, tars):
    tars.write(tmp_path / "a.tar", tars.pair("0", ["one", "two"], modality="ct"))
    tars.write(tmp_path / "b.tar", [*tars.pair("x/0", "three", modality="XRay"), *tars.pair("1", "four")])
    stream = TarShards(str(tmp_path / "*.tar"))
    assert texts(stream) == ["one", "two", "three", "four"]
    assert stream.modality_of_each() == ["ct", "ct", "xray", None]
    assert [stream[place].id.removeprefix(f"{tmp_path}/") for place in range(4)] == [
        "a.tar/0", "a.tar/0#2", "b.tar/x/0", "b.tar/1"
    ]  # fmt: skip
    checksum = stream.checksum()
    tars.write(tmp_path / "b.tar", [*tars.pair("1", "four")])
    assert TarShards(str(tmp_path / "*.tar")).checksum() != checksum


def test_tars_without_any_sample_are_refused(tmp_path, tars):
    tars.write(tmp_path / "a.tar", [])
    with pytest.raises(ValueError, match=r"no sample of 1 tars can be read \(they are empty\)"):
        TarShards(tmp_path / "a.tar").build_index()
    tars.write(tmp_path / "b.tar", [("0.png", tars.png(1))])
    with pytest.raises(ValueError, match=r"can be read \(.*b\.tar/0: has no .txt and no .json"):
        TarShards(tmp_path / "b.tar").build_index()


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
    assert source.notes == ("training pairs are read as a stream from 1 tars",)
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
    items = list(source.train.iterate())
    kept, bad = items if isinstance(items[1], BadSample) else items[::-1]
    assert kept.text == "train 1"
    assert bad == (f"{tmp_path / 'train.tar'}/0", "its group 'p1' is held out for validation or test")
    assert texts(source.train) == ["train 1"]
    assert "its group 'p1' is held out" in source.train.build_index()[0]


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
    stream = TarShards(tmp_path / "real.tar")
    studies = [stream[place] for place in range(len(stream))]
    assert len(studies) == 23
    for study in studies:
        index = int(study.id[-6:])
        expected = split[index]
        assert (study.text, study.modality, study.group) == (expected.text, expected.modality, expected.group)
        np.testing.assert_array_equal(study.image, expected.image)
    assert len({study.modality for study in studies}) >= 4


def write_real(tars, path, files):
    tars.write(path, [(name, json.dumps(data).encode() if isinstance(data, dict) else data) for name, data in files])
