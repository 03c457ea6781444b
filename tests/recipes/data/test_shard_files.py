from pathlib import Path

import pytest

from recipes.data.tars.files import find_shards


@pytest.fixture
def folder(tmp_path):
    for name in ("train-000.tar", "train-001.tar", "train-010.tar", "ct.tar", "odd[1].tar", "old.tar.gz"):
        (tmp_path / name).write_bytes(b"stands in for a tar")
    return tmp_path


def names(shards):
    return [shard.path.name for shard in shards]


@pytest.mark.parametrize(
    ("pattern", "result"),
    [
        ("ct.tar", ["ct.tar"]),
        ("train-*.tar", ["train-000.tar", "train-001.tar", "train-010.tar"]),
        ("train-{000..001}.tar", ["train-000.tar", "train-001.tar"]),
        ("{train-01*,c?}.tar", ["train-010.tar", "ct.tar"]),
        ("odd[1].tar", ["odd[1].tar"]),
    ],
)
def test_braces_globs_and_names(folder, pattern, result):
    assert names(find_shards(str(folder / pattern), None)) == result
    assert names(find_shards([folder / pattern], None)) == result


def test_several_patterns_and_modalities(folder):
    shards = find_shards([folder / "ct.tar", str(folder / "train-*.tar")], " CT ")
    assert names(shards) == ["ct.tar", "train-000.tar", "train-001.tar", "train-010.tar"]
    assert {shard.modality for shard in shards} == {"ct"}
    mixed = find_shards({"CT": folder / "ct.tar", "xray": [str(folder / "train-00*.tar")]}, None)
    assert [shard.modality for shard in mixed] == ["ct", "xray", "xray"]
    assert find_shards(folder / "ct.tar", None)[0].modality is None


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ([], r"pattern must name at least one tar, got \[\]"),
        ({}, r"pattern must name at least one tar, got \{\}"),
        ("", "pattern must name at least one tar, got a blank"),
        ("val-*.tar", r"pattern '.*val-\*\.tar' matches no file"),
        ("train-{000..011}.tar", r"9 of 12 tars do not exist: .*train-002\.tar, .*, \.\.\."),
        ("val.tar", r"pattern: 1 of 1 tars do not exist: .*val\.tar"),
        ("train-{000..001.tar", r"pattern '.*': Unbalanced braces"),
        ("old.tar.gz", r"old\.tar\.gz' is compressed, expected a plain tar"),
        (["ct.tar", "./ct.tar"], r"the tar 'ct\.tar' is listed twice"),
    ],
)
def test_refuses_patterns(folder, monkeypatch, pattern, message):
    monkeypatch.chdir(folder)
    with pytest.raises(ValueError, match=message):
        find_shards(pattern, None)


def test_one_modality_for_a_mapping_contradicts_it(folder):
    with pytest.raises(ValueError, match="modality: the pattern is a mapping of modalities already, so leave out 'ct'"):
        find_shards({"xray": Path(folder / "ct.tar")}, "ct")
