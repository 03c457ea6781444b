import io
import json
import tarfile

import numpy as np
import pytest

from recipes.data.pairs import BadSample
from recipes.data.tars.captions import load_samples
from recipes.data.tars.files import Shard
from recipes.data.tars.samples import TarSample, walk_samples

BESIDE = "A sample's files must stand side by side in the shard"
DOTS = "A key ends at the first dot of a name, unless a number follows: replace other dots in keys by hyphens"


def keys(samples):
    """Key and, for a bad one, reason."""
    return [
        (item.id if isinstance(item, TarSample) else item.key).rpartition("/")[2]
        + (f": {item.reason}" if isinstance(item, BadSample) else "")
        for item in samples
    ]


def captions(path, text_key="text", modality=None):
    loaded = load_samples(Shard(path, modality), walk_samples(path), text_key)
    return [item.reason if isinstance(item, BadSample) else item.caption for item in loaded]


def test_files_side_by_side_are_a_sample(tmp_path, tars):
    files = [
        *tars.pair("a/0.x"),
        *tars.pair("b/0"),
        ("c.JPG", b"j"),
        ("c.cls", b"3"),
        ("c.Txt", b"t"),
        ("c.seg.png", b""),
    ]
    path = tars.write(tmp_path / "s.tar", [("__meta__/x.json", b"{}"), (".DS_Store", b""), ("._c.jpg", b""), *files])
    samples = list(walk_samples(path))
    # The key ends at the first dot: what follows it is the ending, as in WebDataset.
    assert keys(samples) == [f"0: has no image, only .x.png, .x.txt. {BESIDE}. {DOTS}", "0", "c"]
    assert samples[1].id == f"{path}/b/0"
    with path.open("rb") as file:
        assert samples[1].image.read(file) == tars.png(7)
        assert samples[2].text.read(file) == b"t"


def test_leading_dots_of_paths_and_folders_are_passed_over(tmp_path, tars):
    path = tmp_path / "s.tar"
    with tarfile.open(path, "w") as tar:
        folder = tarfile.TarInfo("./train")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name, data in tars.pair("./train/0"):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    assert [sample.id for sample in walk_samples(path)] == [f"{path}/train/0"]


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ([("x.txt", b"t")], "x: has no image, only .txt. A sample's files must"),
        ([("x.png", b"i")], "x: has no .txt and no .json, only .png. A sample's files must"),
        ([("x.png", b"i"), ("x.jpg", b"i"), ("x.txt", b"t")], "x: has 2 images, expected one: .png, .jpg, .txt"),
        ([("x.png", b"i"), ("x.txt", b"t"), ("x.txt", b"t")], "x: holds a file twice: .png, .txt, .txt"),
        ([("LICENSE", b"t")], "LICENSE: has no file ending, which says what a file holds"),
        ([("0.png", b"i"), ("0.txt", b"t")], "0: its key came before. A sample's files must"),
    ],
)
def test_what_is_no_sample_is_named_and_passed_over(tmp_path, tars, files, reason):
    path = tars.write(tmp_path / "s.tar", [*tars.pair("0"), *tars.pair("1"), *files, *tars.pair("2")])
    result = keys(walk_samples(path))
    assert [*result[:2], result[-1]] == ["0", "1", "2"]
    assert len(result) == 4
    assert result[2].startswith(reason)


def test_a_shard_cut_off_within_a_file_or_header_loses_its_tail_only(tmp_path, tars):
    path = tars.write(tmp_path / "s.tar", [*tars.pair("0"), *tars.pair("1"), *tars.pair("2")])
    whole = path.read_bytes()
    last = list(walk_samples(path))[2]
    expected = {
        last.text.offset + 3: ["0", "1", "2: is cut off: the shard ends within '2.txt'"],
        last.image.offset + 3: ["0", "1", "2: is cut off: the shard ends within '2.png'"],
        last.image.offset - 100: ["0", "1", "s.tar: ends without tar's end mark: it may be cut off, with samples lost"],
        last.image.offset + 300: [
            "0",
            "1",
            "2: has no .txt and no .json, only .png. " + BESIDE,
            "s.tar: is cut off or damaged: unexpected end of data",
        ],
        last.image.offset - 512: ["0", "1", "s.tar: ends without tar's end mark: it may be cut off, with samples lost"],
    }
    for size, result in expected.items():
        path.write_bytes(whole[:size])
        assert keys(walk_samples(path)) == result


@pytest.mark.parametrize("size", range(0, 3072, 256))
def test_no_cut_goes_unreported(tmp_path, tars, size):
    path = tars.write(tmp_path / "s.tar", [*tars.pair("0"), *tars.pair("1")])
    whole = path.read_bytes()
    path.write_bytes(whole[:size])
    result = list(walk_samples(path))
    assert isinstance(result[-1], BadSample)
    assert str(path) in result[-1].key


def test_a_damaged_header_is_named_by_its_place(tmp_path, tars):
    path = tars.write(tmp_path / "s.tar", [*tars.pair("0"), *tars.pair("1"), *tars.pair("2")])
    data = bytearray(path.read_bytes())
    place = list(walk_samples(path))[1].image.offset - 512
    data[place : place + 100] = b"!" * 100
    path.write_bytes(data)
    assert keys(walk_samples(path)) == [
        "0", f"s.tar: has a damaged header at byte {place}: what follows cannot be read"
    ]  # fmt: skip


def test_what_is_no_tar_and_what_is_gone_are_bad_samples(tmp_path):
    path = tmp_path / "s.tar"
    assert keys(walk_samples(path))[0].startswith("s.tar: cannot be read as a tar: [Errno 2]")
    path.write_bytes(b"")
    assert keys(walk_samples(path)) == ["s.tar: cannot be read as a tar: empty file"]
    path.write_bytes(b"no tar" * 1000)
    assert keys(walk_samples(path))[0].startswith("s.tar: cannot be read as a tar: invalid header")


def test_texts_modalities_and_groups(tmp_path, tars):
    image = tars.png(1)

    def sample(key, text=None, fields=None):
        files = [(f"{key}.png", image)]
        files += [] if text is None else [(f"{key}.txt", text)]
        return files + ([] if fields is None else [(f"{key}.json", json.dumps(fields).encode())])

    path = tars.write(
        tmp_path / "s.tar",
        [
            *sample("0", b"\xef\xbb\xbf a cyst \n"),
            *sample("1", None, {"text": " a mass ", "modality": " CT ", "group": "p1"}),
            *sample("2", None, {"caption": "a caption", "modality": None, "group": 7}),
            *sample("3", b"plain", {"caption": "a caption", "report": "a report"}),
            *sample("4", b" ", {"caption": "a caption", "modality": ""}),
        ],
    )
    own = [f"{path}/{i}" for i in range(5)]
    texts = ["a cyst", "a mass", "a caption", "plain", "a caption"]
    rows = zip(texts, [None, "ct", None, None, None], [own[0], "p1", "7", *own[3:]], strict=True)
    assert captions(path) == [(text, kind, group) for text, kind, group in rows]
    assert [caption.modality for caption in captions(path, modality="mri")] == ["mri", "ct", "mri", "mri", "mri"]
    assert captions(path, text_key="report")[3].text == "a report"


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("0.txt", b" \n", "has no text: the .txt is absent or blank"),
        ("0.txt", b"\xff\xfe", "its .txt is not UTF-8: invalid start byte at byte 0"),
        ("0.json", b"{}", "has no text: the .json's 'text' and 'caption' are absent or blank"),
        ("0.json", b'{"text"', "its .json is invalid: Expecting ':' delimiter: line 1 column 8 (char 7)"),
        ("0.json", b"[1]", "its .json must be an object, got list"),
        ("0.json", b'{"text": 3}', "its .json's 'text' must be a string, got int"),
        ("0.json", b'{"text": "t", "modality": 3}', "its .json's 'modality' must be a string, got int"),
        ("0.json", b'{"text": "t", "group": true}', "its .json's 'group' must be a string, got bool"),
        ("0.json", b"[" * 100_000, "its .json is invalid: maximum recursion depth exceeded"),
    ],
)
def test_damaged_captions(tmp_path, tars, name, data, reason):
    path = tars.write(tmp_path / "s.tar", [("0.png", tars.png(1)), (name, data), *tars.pair("1", "sound")])
    damaged, sound = captions(path)
    assert damaged.startswith(reason)
    assert sound.text == "sound"


def test_a_sample_is_decoded_last(tmp_path, tars):
    path = tars.write(
        tmp_path / "s.tar", [*tars.pair("0", "t", shade=9, modality="ct"), ("1.png", b"?"), ("1.txt", b"t")]
    )
    sound, broken = load_samples(Shard(path, None), walk_samples(path), "text")
    study = sound.decode()
    assert (study.id, study.group, study.text, study.modality) == (f"{path}/0", f"{path}/0", "t", "ct")
    np.testing.assert_array_equal(study.image, np.full((4, 6), 9))
    assert study.labels.tolist() == []
    with pytest.raises(ValueError, match=r"cannot read the image '.*s\.tar/1': cannot identify its kind"):
        broken.decode()


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["1.2.840.1.png", "1.2.840.1.txt", "1.2.840.2.png", "1.2.840.2.TXT"], ["1.2.840.1", "1.2.840.2"]),
        (["p/1.2.840.png", "p/1.2.840.seg.png", "p/1.2.840.txt"], ["p/1.2.840"]),
        (["study.v2.1.png", "study.v2.1.txt", "study.v2.2.png", "study.v2.2.txt"], ["study.v2.1", "study.v2.2"]),
        (["0.seg.png", "0.png", "0.txt"], ["0"]),
        (["a.b/1.png", "a.b/1.txt"], ["a.b/1"]),
    ],
)
def test_keys_may_hold_dots_before_numbers(tmp_path, tars, names, expected):
    path = tars.write(tmp_path / "s.tar", [(name, b"?") for name in names])
    assert [sample.id.removeprefix(f"{path}/") for sample in walk_samples(path)] == expected


def test_samples_named_by_dicom_uids_are_read(tmp_path, tars):
    files = [*tars.pair("1.2.840.113.1", "first"), *tars.pair("1.2.840.113.2", "second", modality="ct")]
    path = tars.write(tmp_path / "s.tar", files)
    assert [caption.text for caption in captions(path)] == ["first", "second"]


def texts_in_json(key, *texts, field="text"):
    return (f"{key}.json", json.dumps({field: list(texts)}).encode())


@pytest.mark.parametrize("field", ["text", "caption"])
def test_each_caption_of_a_list_is_a_pair(tmp_path, tars, field):
    texts = texts_in_json("0", " a mass ", "one lesion", "", None, "a mass", field=field)
    path = tars.write(tmp_path / "s.tar", [("0.png", tars.png(5)), texts])
    pairs = list(load_samples(Shard(path, None), walk_samples(path), "text"))
    assert [(pair.id, pair.caption.text) for pair in pairs] == [
        (f"{path}/0", "a mass"),
        (f"{path}/0#2", "one lesion"),
    ]
    assert {pair.caption.group for pair in pairs} == {f"{path}/0"}
    studies = [pair.decode() for pair in pairs]
    assert [study.id for study in studies] == [pair.id for pair in pairs]
    for study in studies:
        np.testing.assert_array_equal(study.image, np.full((4, 6), 5))


def test_lists_without_a_text_and_of_other_things(tmp_path, tars):
    images = [(f"{key}.png", tars.png(5)) for key in range(3)]
    files = [
        *(images[0], texts_in_json("0", " ")),
        *(images[1], texts_in_json("1", "a", 3)),
        *(images[2], texts_in_json("2"), ("2.txt", b"from the text file")),
    ]
    blank, wrong, file = captions(tars.write(tmp_path / "s.tar", files))
    assert blank == "has no text: the .json's 'text' and 'caption' are absent or blank"
    assert wrong == "its .json's 'text' must be a string, got int"
    assert file.text == "from the text file"


def test_written_nan_is_blank(tmp_path, tars):
    image = tars.png(5)
    fields = b'{"text": NaN, "caption": "a cyst", "modality": NaN, "group": NaN}'
    files = [("0.png", image), ("0.json", fields), ("1.png", image), ("1.json", b'{"text": "a", "group": 7.0}')]
    path = tars.write(tmp_path / "s.tar", [*files, ("2.png", image), ("2.txt", b"nan")])
    first, second, third = captions(path)
    assert first == ("a cyst", None, f"{path}/0")
    assert second.group == "7"
    assert third == "has no text: the .txt is absent or blank"


def test_what_follows_an_end_mark_is_read(tmp_path, tars):
    one = tars.write(tmp_path / "one.tar", [*tars.pair("0", "a"), *tars.pair("1", "b")]).read_bytes()
    two = tars.write(tmp_path / "two.tar", tars.pair("2", "c", shade=9)).read_bytes()
    path = tmp_path / "s.tar"
    path.write_bytes(one + bytes(3 * 512) + two)
    assert keys(walk_samples(path)) == ["0", "1", "2"]
    assert [caption.text for caption in captions(path)] == ["a", "b", "c"]
    pairs = list(load_samples(Shard(path, None), walk_samples(path), "text"))
    np.testing.assert_array_equal(pairs[2].decode().image, np.full((4, 6), 9))


def test_a_key_that_comes_again_behind_an_end_mark_is_counted(tmp_path, tars):
    one = tars.write(tmp_path / "one.tar", tars.pair("0", "a")).read_bytes()
    (tmp_path / "s.tar").write_bytes(one + one)
    first, again = keys(walk_samples(tmp_path / "s.tar"))
    assert first == "0"
    assert again.startswith("0: its key came before.")


def test_other_bytes_behind_an_end_mark_are_counted(tmp_path, tars):
    path = tars.write(tmp_path / "s.tar", tars.pair("0"))
    whole = path.read_bytes()
    for other in (b"not a tar" * 100, b"short"):
        path.write_bytes(whole + other)
        reason = f"has bytes behind its end mark, from byte {len(whole)} on, that are no tar"
        assert keys(walk_samples(path)) == ["0", f"s.tar: {reason}"]
    path.write_bytes(whole + bytes(5 * 2**20))
    assert keys(walk_samples(path)) == ["0"]
