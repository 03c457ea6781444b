"""Decoded images on disk: the same pixels, whole after a kill, one writer, a limit."""

import fcntl
import json
import os
import pickle
import signal
import sqlite3
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from recipes.data.decoded_cache import existing_cache, fill_cache, image_keys
from recipes.data.image_files import ImageFiles
from recipes.data.images.square import fit_square
from recipes.data.phantom import phantom_source
from recipes.medmoe.data.batches import PairReader
from recipes.medmoe.data.loaders import train_loader, val_loader
from recipes.medmoe.data.sources import build_source as pair_source
from recipes.medmoe.data.sources import train_texts
from recipes.medmoe.inference.run import Session
from recipes.medvlmoe import train
from recipes.shared.encoders.image import ImageEncoderSpec
from recipes.shared.encoders.text import load_text_encoder
from recipes.shared.loading import FittedImages
from tests.recipes import chest_folders as folders
from tests.recipes.medmoe.conftest import small_config as medmoe_config
from tests.recipes.medvlmoe.conftest import small_config

SPEC = ImageEncoderSpec("test_resnet", 64)


def image_files(folder, count=6, shape=(40, 30)):
    folder.mkdir(parents=True, exist_ok=True)
    names = tuple(f"{n}.png" for n in range(count))
    for n, name in enumerate(names):
        kind = (*shape, 3) if n % 3 == 1 else shape
        Image.fromarray(np.random.default_rng(n).integers(0, 256, kind, dtype=np.uint8)).save(folder / name)
    paths = tuple(str(folder / name) for name in names)
    nothing = (None,) * count
    return ImageFiles(names, paths, ((),) * count, np.zeros((count, 1), np.float32), names, nothing, nothing)


def stored_count(cache, size=32):
    with sqlite3.connect(cache / f"images-{size}.sqlite") as database:
        return database.execute("SELECT COUNT(*) FROM images").fetchone()[0]


def test_images_are_those_of_the_files_and_are_read_once(tmp_path, monkeypatch):
    split = image_files(tmp_path / "images")
    stored = fill_cache(split, tmp_path / "cache", 32, limit_bytes=1e9)
    for row in range(6):
        np.testing.assert_array_equal(stored(row), fit_square(split[row].image, 32))
        assert stored(row).flags.writeable
    again = pickle.loads(pickle.dumps(stored))
    np.testing.assert_array_equal(again(3), stored(3))

    def refuse(*_):
        raise AssertionError("an image was decoded twice")

    monkeypatch.setattr(ImageFiles, "__getitem__", refuse)
    stored = fill_cache(split, tmp_path / "cache", 32, limit_bytes=1e9)
    plain = FittedImages(split, 32, stored=stored)
    assert plain.fitted(1).shape == (32, 32, 3)


def test_an_edited_image_is_decoded_anew(tmp_path):
    split = image_files(tmp_path / "images")
    fill_cache(split, tmp_path / "cache", 32, limit_bytes=1e9)
    Image.fromarray(np.full((8, 8), 77, np.uint8)).save(split.paths[2])
    os.utime(split.paths[2], ns=(1, 1))
    stored = fill_cache(split, tmp_path / "cache", 32, limit_bytes=1e9)
    assert (stored(2) == 77).all()


def test_keys_know_how_an_image_is_read(tmp_path):
    from recipes.data.image_files import file_reader

    split = image_files(tmp_path, 1)
    assert image_keys(split) != image_keys(replace(split, read=file_reader(True)))
    assert image_keys(split) != image_keys(replace(split, details=(1,)))
    assert image_keys(split) == image_keys(replace(split, read=file_reader(False)))


def test_beyond_the_limit_images_are_read_from_their_files(tmp_path, capsys):
    split = image_files(tmp_path / "images", 9)
    stored = fill_cache(split, tmp_path / "cache", 32, limit_bytes=4 * 32 * 32)
    held = [row for row in range(9) if stored(row) is not None]
    assert held == [0, 1]  # the second is in colour, three times as large
    assert "is full (4.096e-06 GB): 7 of 9 images are read from their files" in capsys.readouterr().out
    images = FittedImages(split, 32, stored=stored)
    np.testing.assert_array_equal(images.fitted(5), fit_square(split[5].image, 32))
    fill_cache(split, tmp_path / "cache", 32, limit_bytes=32 * 32)
    assert stored_count(tmp_path / "cache") == 2


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_image_is_named_and_the_others_are_kept(tmp_path, workers):
    split = image_files(tmp_path / "images")
    with open(split.paths[4], "r+b") as file:
        file.truncate(80)
    with pytest.raises(ValueError, match=r"cannot read the image .*4\.png"):
        fill_cache(split, tmp_path / "cache", 32, limit_bytes=1e9, workers=workers)
    assert stored_count(tmp_path / "cache") == 4


def test_what_is_refused(tmp_path):
    split = image_files(tmp_path / "images")
    with pytest.raises(ValueError, match=r"cache_gigabytes must be above 0, got 0"):
        fill_cache(split, tmp_path / "cache", 32, limit_bytes=0)
    phantom = phantom_source(train=3, val=3, test=3, size=64).train
    with pytest.raises(ValueError, match=r"cache_folder is for data sets whose images are files.*leave --cache-folder"):
        fill_cache(phantom, tmp_path / "cache", 32, limit_bytes=1e9)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "images-32.sqlite").write_text("this is no data base of any kind" * 40)
    with pytest.raises(
        ValueError, match=r"cannot write the cache .*images-32\.sqlite': file is not a database. Delete"
    ):
        fill_cache(split, tmp_path / "cache", 32, limit_bytes=1e9)
    with pytest.raises(ValueError, match=r"cannot write the cache .*--cache-folder"):
        fill_cache(split, tmp_path / "images" / "0.png", 32, limit_bytes=1e9)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_killed_filling_goes_on_where_it_was(tmp_path, monkeypatch):
    split = image_files(tmp_path / "images", 400)
    child = os.fork()
    if child == 0:
        fill_cache(split, tmp_path / "cache", 32, limit_bytes=1e9)
        os._exit(0)
    file = tmp_path / "cache" / "images-32.sqlite"
    while not (file.exists() and file.stat().st_size > 100_000):
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    before = stored_count(tmp_path / "cache")
    assert before % 64 == 0 or before == 400
    read = []
    plain = ImageFiles.__getitem__
    monkeypatch.setattr(ImageFiles, "__getitem__", lambda split, row: read.append(row) or plain(split, row))
    stored = fill_cache(split, tmp_path / "cache", 32, limit_bytes=1e9)
    assert read == list(range(before, 400))
    for row in (0, 200, 399):
        np.testing.assert_array_equal(stored(row), fit_square(plain(split, row).image, 32))


def test_a_second_writer_waits_for_the_first(tmp_path, capfd):
    split = image_files(tmp_path / "images")
    (tmp_path / "cache").mkdir()
    with (tmp_path / "cache" / "images-32.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        second = threading.Thread(target=fill_cache, args=(split, tmp_path / "cache", 32), kwargs={"limit_bytes": 1e9})
        second.start()
        second.join(0.2)
        assert second.is_alive()
        assert not (tmp_path / "cache" / "images-32.sqlite").exists()
    second.join()
    assert stored_count(tmp_path / "cache") == 6
    assert "waiting for another process that fills" in capfd.readouterr().out


OF_THE_MACHINE = ("seconds", "samples_per_second", "data_wait", "peak_memory_bytes")


@pytest.mark.slow
def test_a_training_with_a_cache_has_the_losses_of_one_without(tmp_path):
    root = folders.chexpert_folder(tmp_path / "set")
    histories = []
    for name, cache in (("plain", None), ("cached", tmp_path / "cache")):
        config = small_config(tmp_path / name, epochs=1, batch_size=8, cache_images=False, cache_folder=cache)
        train.main(replace(config, data=replace(config.data, data=f"chexpert:{root}")))
        record = json.loads((tmp_path / name / "history.jsonl").read_text())
        histories.append({key: value for key, value in record.items() if key not in OF_THE_MACHINE})
        torch.manual_seed(0)
    assert histories[0] == histories[1]
    assert "train_loss" in histories[0]
    assert stored_count(tmp_path / "cache", 64) == 24


def test_an_image_with_several_captions_is_decoded_once(tmp_path, monkeypatch):
    split = image_files(tmp_path / "images").take([0, 1, 0, 0])
    read = []
    monkeypatch.setattr(
        "recipes.data.decoded_cache.fit_square", lambda image, size: read.append(size) or fit_square(image, size)
    )
    stored = fill_cache(split, tmp_path / "cache", 32, limit_bytes=1e9)
    assert (len(read), stored_count(tmp_path / "cache")) == (2, 2)
    np.testing.assert_array_equal(stored(0), stored(3))


def pairs_of_files(folder):
    """A table of twelve pairs, a third of them for each split, and settings of MedMoE that read it."""
    image_files(folder, 12)
    rows = [f"{n}.png,note {n % 5},{('train', 'val', 'test')[n % 3]}" for n in range(12)]
    (folder / "pairs.csv").write_text("\n".join(["image,text,split", *rows]) + "\n")
    config = medmoe_config(folder / "run", batch_size=2, cache_images=False, augment=False)
    manifest = replace(config.data.manifest, modality_column=None)
    return replace(config, data=replace(config.data, data=str(folder / "pairs.csv"), manifest=manifest))


def test_pretraining_reads_the_same_batches_from_a_cache(tmp_path, monkeypatch):
    config = pairs_of_files(tmp_path / "set")
    source = pair_source(config)
    reader = PairReader(("ct",), load_text_encoder("tiny-bert", texts=train_texts(source) * 2).tokenizer, SPEC, 8)

    def batches(config):
        loader, _ = train_loader(config, source, reader, rank=0, world_size=1)
        return [batch.images for part in (loader, val_loader(config, source, reader, shown=False)) for batch in part]

    plain = batches(config)
    cached = replace(config, train=replace(config.train, cache_folder=tmp_path / "cache"))
    batches(cached)
    assert stored_count(tmp_path / "cache", SPEC.size) == 8
    monkeypatch.setattr(ImageFiles, "__getitem__", None)
    for one, two in zip(plain, batches(cached), strict=True):
        assert torch.equal(one, two)
    drawn = replace(cached, data=replace(config.data, data="phantom"))
    with pytest.raises(ValueError, match=r"cache_folder is for data sets whose images are files.*leave --cache-folder"):
        train_loader(drawn, pair_source(drawn), reader, rank=0, world_size=1)


def test_a_pretrained_run_embeds_images_of_the_cache(tmp_path, monkeypatch):
    config = pairs_of_files(tmp_path / "set")
    split = pair_source(config).train
    fill_cache(split, tmp_path / "cache", SPEC.size, limit_bytes=1e9)
    monkeypatch.setattr(ImageFiles, "__getitem__", None)
    model = type("Model", (), {"image_encoder": type("Encoder", (), {"spec": SPEC})()})()
    config = replace(config, train=replace(config.train, cache_folder=tmp_path / "cache"))
    session = Session(tmp_path, config, model, torch.device("cpu"))
    monkeypatch.setattr(Session, "images", lambda self, pictures: [picture.shape[:2] for picture in pictures])
    assert list(session.image_batches(split)) == [([0, 1], [(64, 64)] * 2), ([2, 3], [(64, 64)] * 2)]


def test_a_cache_is_read_where_there_is_one_and_nothing_is_added(tmp_path):
    split = image_files(tmp_path / "images")
    assert existing_cache(split, None, 32) is None
    assert existing_cache(split, tmp_path / "cache", 32) is None
    assert not (tmp_path / "cache").exists()
    fill_cache(split.take(range(4)), tmp_path / "cache", 32, limit_bytes=1e9)
    stored = existing_cache(split, tmp_path / "cache", 32)
    np.testing.assert_array_equal(stored(3), fit_square(split[3].image, 32))
    assert stored(5) is None
    np.testing.assert_array_equal(FittedImages(split, 32, stored=stored).fitted(5), fit_square(split[5].image, 32))
    assert stored_count(tmp_path / "cache") == 4
    assert existing_cache(split, tmp_path / "cache", 64) is None
    assert existing_cache(phantom_source(train=1, val=1, test=1, size=64).test, tmp_path / "cache", 32) is None


def test_evaluation_takes_images_from_the_run_s_cache(tmp_path, monkeypatch):
    from recipes.medvlmoe import inference

    split = image_files(tmp_path / "images")
    fill_cache(split, tmp_path / "cache", 64, limit_bytes=1e9)
    config = small_config(tmp_path / "run", cache_folder=tmp_path / "cache")
    spec = type("Spec", (), {"size": 64})()
    model = type("Model", (), {"text_encoder": None, "image_encoder": type("Encoder", (), {"spec": spec})()})()
    dataset = inference.dataset_of(split, config, model)
    monkeypatch.setattr(ImageFiles, "__getitem__", None)
    assert dataset.images.fitted(2).shape[:2] == (64, 64)
