"""classify, embed and search on folders and tables of images."""

import importlib.util
import json

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from recipes.medmoe.__main__ import main
from recipes.medmoe.inference.run import Session
from recipes.medmoe.use import classify, embed, search
from recipes.medmoe.use.images import Images
from recipes.medmoe.use.index import Index, nearest, read_index, write_index


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Six pictures, two of them in a folder below, and a text file."""
    out = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    (out / "below").mkdir()
    for row, name in enumerate(("a.png", "b.jpg", "c.png", "below/d.png", "below/e.png", "f.png")):
        Image.fromarray((rng.integers(0, 60, (50, 40)) + 30 * row).astype(np.uint8)).save(out / name)
    (out / "notes.txt").write_text("no image")
    return out


@pytest.fixture(scope="module")
def index(pretrained_run, folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("index") / "pictures.npz"
    embed.main(pretrained_run, images=Images(image=(folder,)), out=out)
    return out


def test_a_folder_is_classified_by_names(pretrained_run, folder, tmp_path, capsys):
    out = tmp_path / "classes.csv"
    main(["classify", str(pretrained_run), "--image", str(folder), "--classes", "cyst", "normal", "--out", str(out)])
    printed = capsys.readouterr().out
    assert "of the words of the prompts" in printed
    assert f"written: {out} (6 rows); scoring mean" in printed
    table = pd.read_csv(out)
    assert list(table.columns) == ["image", "prediction", "prob:cyst", "prob:normal"]
    assert sorted(path.rsplit("/", 1)[1] for path in table["image"]) == [
        f"{c}.{'jpg' if c == 'b' else 'png'}" for c in "abcdef"
    ]
    assert np.allclose(table[["prob:cyst", "prob:normal"]].sum(axis=1), 1)
    assert (table["prediction"] == np.where(table["prob:cyst"] >= 0.5, "cyst", "normal")).all()


def test_an_image_alone_scores_as_it_does_among_others(pretrained_run, folder, tmp_path):
    arguments = {"classes": ("cyst", "normal"), "out": tmp_path / "out.csv"}
    every = classify.main(pretrained_run, images=Images(image=(folder,)), **arguments)
    alone = classify.main(pretrained_run, images=Images(image=(folder / "c.png",)), **arguments)
    row = every[every["image"] == str(folder / "c.png")].iloc[0]
    assert alone["prob:cyst"][0] == pytest.approx(row["prob:cyst"], abs=1e-6)


def test_several_classes_are_judged_each_against_its_absence(pretrained_run, folder, tmp_path):
    table = classify.main(
        pretrained_run, images=Images(image=(folder,)), classes=("cyst",), several=True, out=tmp_path / "out.csv"
    )
    assert ((table["prediction"] == "cyst") == (table["prob:cyst"] > 0.5)).all()


def test_a_prompt_file_and_some_of_its_classes(pretrained_run, folder, tmp_path):
    prompts = tmp_path / "mine.json"
    prompts.write_text(
        json.dumps({"classes": {"cyst": ["a simple cyst"], "mass": ["a solid mass"], "other": ["normal"]}})
    )
    arguments = {"images": Images(image=(folder,)), "prompts": str(prompts), "out": tmp_path / "out.csv"}
    assert list(classify.main(pretrained_run, **arguments).columns[2:]) == ["prob:cyst", "prob:mass", "prob:other"]
    some = classify.main(pretrained_run, **arguments, classes=("other", "cyst"))
    assert list(some.columns[2:]) == ["prob:other", "prob:cyst"]
    with pytest.raises(ValueError, match=r"has no texts against \['cyst', 'mass', 'other'\], which --several"):
        classify.main(pretrained_run, **arguments, several=True)


def test_a_table_of_images(pretrained_run, folder, tmp_path):
    (tmp_path / "mine.csv").write_text("file\na.png\nbelow/d.png\n")
    images = Images(csv=tmp_path / "mine.csv", image_column="file", image_root=folder)
    table = classify.main(pretrained_run, images=images, classes=("cyst", "normal"), out=tmp_path / "out.csv")
    assert list(table["image"]) == [str(folder / "a.png"), str(folder / "below/d.png")]
    with pytest.raises(ValueError, match=r"out would replace the table that is read"):
        classify.main(pretrained_run, images=images, classes=("cyst", "normal"), out=tmp_path / "mine.csv")


def test_damaged_images_stop_the_command_or_are_named(pretrained_run, folder, tmp_path, capsys):
    bad = tmp_path / "bad.png"
    bad.write_bytes((folder / "a.png").read_bytes()[:60])
    files = (bad, folder / "a.png")
    arguments = {"classes": ("cyst", "normal"), "out": tmp_path / "out.csv"}
    with pytest.raises(ValueError, match=r"bad\.png"):
        classify.main(pretrained_run, images=Images(image=files), **arguments)
    table = classify.main(pretrained_run, images=Images(image=files, on_bad_image="skip"), **arguments)
    assert list(table["image"]) == [str(folder / "a.png")]
    assert "left out: 1 of 2 images that cannot be read: " in capsys.readouterr().out
    with pytest.raises(ValueError, match="none of the 1 images can be read"):
        Images(image=(bad,), on_bad_image="skip").open()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"images": Images()}, r"give images or a table of them: --image FILES OR FOLDERS, or --csv TABLE"),
        ({"classes": ()}, r"classes: give names, --classes .* or a prompt file, --prompts FILE.json or one of acl, "),
        ({"classes": ("cyst",)}, r"at least two to choose among, got \['cyst'\].*--several"),
        ({"classes": ("cyst", "cyst")}, r"classes must differ, got \['cyst'\] more than once"),
        ({"classes": ("cyst", "qwertz")}, r"the tokenizer knows no word of 'qwertz'"),
        ({"images": Images(image=("a",), text_column="t")}, r"--text-column and --image-root belong to a table"),
    ],
)
def test_what_cannot_be_classified_is_refused(pretrained_run, folder, tmp_path, arguments, message):
    given = {"images": Images(image=(folder,)), "classes": ("cyst", "normal"), "out": tmp_path / "out.csv"}
    with pytest.raises(ValueError, match=message):
        classify.main(pretrained_run, **given | arguments)


def test_an_index_holds_the_embeddings_of_the_model(pretrained_run, folder, index):
    kept, session = read_index(index), Session.open(pretrained_run)
    picture = session.fit(np.asarray(Image.open(folder / "a.png")))
    row = kept.images.index(str(folder / "a.png"))
    assert torch.allclose(session.images([picture]).embedding[0], torch.tensor(kept.embeddings[row]), atol=1e-5)
    assert kept.about["run"] == pretrained_run.name
    assert (kept.texts, kept.text_embeddings) == (None, None)


def test_texts_of_a_table_are_embedded_beside_its_images(pretrained_run, folder, tmp_path):
    (tmp_path / "mine.csv").write_text("image,note\na.png,a cyst\nc.png,\n")
    images = Images(csv=tmp_path / "mine.csv", image_root=folder, text_column="note")
    embed.main(pretrained_run, images=images, out=tmp_path / "mine.npz")
    kept = read_index(tmp_path / "mine.npz")
    assert kept.texts == ("a cyst", "")
    assert np.linalg.norm(kept.text_embeddings, axis=1) == pytest.approx([1, 0], abs=1e-5)


def test_search_by_text_and_by_image(pretrained_run, folder, index, tmp_path, capsys):
    out = tmp_path / "found.csv"
    table = search.main(pretrained_run, index=index, text=("a cyst",), image=(folder / "a.png",), top=3, out=out)
    assert list(table["rank"]) == [1, 2, 3] * 2
    assert f"written: {out} (6 rows)" in capsys.readouterr().out
    session, kept = Session.open(pretrained_run), read_index(index)
    cosines = kept.embeddings @ session.texts(["a cyst"]).embedding[0].numpy()
    assert list(table["image"][:3]) == [kept.images[row] for row in np.argsort(-cosines)[:3]]
    assert table["score"][0] == pytest.approx(cosines.max(), abs=1e-5)
    similar = table[table["query"] == str(folder / "a.png")]
    assert str(folder / "a.png") not in set(similar["image"])
    assert (similar["score"].diff()[1:] <= 0).all()


def test_an_index_of_other_weights_is_refused(pretrained_run, index, tmp_path):
    kept = read_index(index)
    other = tmp_path / "other.npz"
    write_index(other, Index(kept.images, kept.embeddings, dict(kept.about) | {"weights": "0"}))
    with pytest.raises(ValueError, match=r"other\.npz was made by other weights \(run small, best\)"):
        search.main(pretrained_run, index=other, text=("a cyst",))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, r"give what to look for: --text WORDS, --image FILES"),
        ({"text": ("a",), "top": 0}, r"top must be at least 1, got 0"),
        ({"text": ("qwertz",)}, r"the tokenizer knows no word of 'qwertz'"),
    ],
)
def test_what_cannot_be_looked_for_is_refused(pretrained_run, index, arguments, message):
    with pytest.raises(ValueError, match=message):
        search.main(pretrained_run, index=index, **arguments)


def small_index(count=5, dim=3):
    vectors = np.random.default_rng(0).normal(size=(count, dim)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    about = {"run": "r", "checkpoint": "best", "weights": "w"}
    return Index(
        tuple(f"{row}.png" for row in range(count)), vectors, about, ("a", "", "c", "d", "e"), vectors[::-1].copy()
    )


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
def test_what_is_written_is_read_again(tmp_path, suffix):
    if suffix == ".parquet":
        pytest.importorskip("pyarrow", reason="pyarrow (extra search) is not installed")
    index = small_index()
    write_index(tmp_path / f"i{suffix}", index)
    again = read_index(tmp_path / f"i{suffix}")
    assert (again.images, again.texts, again.about) == (index.images, index.texts, index.about)
    assert np.array_equal(again.embeddings, index.embeddings)
    assert np.array_equal(again.text_embeddings, index.text_embeddings)


@pytest.mark.parametrize("faiss", [False, True])
def test_the_nearest_have_the_highest_cosine(faiss):
    if faiss:
        pytest.importorskip("faiss", reason="faiss (extra search) is not installed")
    index, queries = small_index(), np.array([[2.0, 0, 0], [0, 0, -1]])
    cosines, rows = nearest(index, queries, 3, faiss=faiss)
    expected = queries / np.linalg.norm(queries, axis=1, keepdims=True) @ index.embeddings.T
    assert rows.tolist() == np.argsort(-expected, axis=1)[:, :3].tolist()
    assert cosines == pytest.approx(-np.sort(-expected, axis=1)[:, :3], abs=1e-6)
    assert nearest(index, queries, 99, faiss=faiss)[1].shape == (2, 5)
    with pytest.raises(ValueError, match="queries have width 2, the index 3"):
        nearest(index, queries[:, :2], 1)


def test_files_that_are_no_index_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"must end in \.npz or \.parquet \(--index\)"):
        read_index(tmp_path / "a.csv")
    with pytest.raises(ValueError, match=r"a\.npz does not exist: make an index with embed --out"):
        read_index(tmp_path / "a.npz")
    (tmp_path / "a.npz").write_bytes(b"no zip")
    with pytest.raises(ValueError, match=r"a\.npz is no index that can be read"):
        read_index(tmp_path / "a.npz")
    np.savez(tmp_path / "a.npz", images=np.array(["a"]), embeddings=np.zeros((2, 2)), about=np.array("{}"))
    with pytest.raises(ValueError, match=r"a\.npz is no index: make it anew"):
        read_index(tmp_path / "a.npz")


@pytest.mark.skipif(importlib.util.find_spec("pyarrow") is not None, reason="pyarrow is installed")
def test_parquet_without_pyarrow_names_the_extra(pretrained_run, tmp_path):
    with pytest.raises(ImportError, match=r'pip install "moekit\[search\]"'):
        embed.main(pretrained_run, images=Images(image=(tmp_path,)), out=tmp_path / "a.parquet")
