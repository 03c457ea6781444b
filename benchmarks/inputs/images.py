"""Images per second of the input pipeline: read, decode, fit, augment and stack, as in training."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from torch.utils.data import DataLoader

from recipes.data.decoded_cache import DecodedImages, fill_cache
from recipes.data.image_files import ImageFiles
from recipes.medvlmoe.config import TrainConfig
from recipes.medvlmoe.data import StudyDataset, make_loader
from recipes.shared.encoders.image import ImageEncoderSpec

SIZE = 224
"""Side of the encoder's square, in pixels."""


class ImageRate(NamedTuple):
    """How many images a second reach the model.

    Attributes:
        kind: Of the files.
        kilobytes: Mean size of a file.
        source: ``files``, ``cache on disk`` or ``cache in memory``.
        workers: Processes that load; 0 loads in the main process.
        per_second: Images by the clock.
        per_processor_second: Images for each second of processor time, with 0 workers; ``None`` else.
    """

    kind: str
    kilobytes: float
    source: str
    workers: int
    per_second: float
    per_processor_second: float | None


def _radiograph(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """Draws a smooth image with grain, which compresses about as a radiograph does: 8 bits."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((shape[1], shape[0]), Image.Resampling.BICUBIC), np.float32)
    grey = np.clip(smooth + rng.normal(0, 4, shape[:2]), 0, 255).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2) if len(shape) == 3 else grey


def _write_dicom(path: Path, grey: np.ndarray) -> None:
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    data = Dataset()
    data.SOPClassUID, data.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1.1", generate_uid()
    data.Rows, data.Columns = grey.shape
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 12, 11, 0
    data.PixelData = (grey.astype(np.uint16) * 16).tobytes()
    data["PixelData"].VR = "OW"
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
    data.save_as(path, enforce_file_format=True)


def _write_8_bit(path: Path, image: np.ndarray) -> None:
    Image.fromarray(image).save(path)


def _write_16_bit(path: Path, grey: np.ndarray) -> None:
    Image.fromarray(grey.astype(np.uint16) * 257).save(path)


KINDS: dict[str, tuple[str, tuple[int, ...], Callable[[Path, np.ndarray], None]]] = {
    "JPEG, 224 px": (".jpg", (224, 224), _write_8_bit),
    "JPEG, 390 by 320 px (CheXpert small)": (".jpg", (320, 390), _write_8_bit),
    "PNG in colour, 560 by 470 px (BUSI)": (".png", (470, 560, 3), _write_8_bit),
    "PNG, 1024 px (ChestX-ray14)": (".png", (1024, 1024), _write_8_bit),
    "PNG of 16 bits, 1024 px": (".png", (1024, 1024), _write_16_bit),
    "TIFF, 1024 px": (".tif", (1024, 1024), _write_8_bit),
    "DICOM of 12 bits, 1024 px": (".dcm", (1024, 1024), _write_dicom),
    "JPEG, 2544 by 3056 px (MIMIC-CXR-JPG)": (".jpg", (3056, 2544), _write_8_bit),
}
"""Ending, shape and writer of each kind of file."""

CACHED = "PNG, 1024 px (ChestX-ray14)"
"""Kind that is loaded from the caches too; what they hold is the same for all."""


def image_rates(folder: Path, count: int, workers: tuple[int, ...]) -> Iterator[ImageRate]:
    """Writes ``count`` files of each kind below a folder and yields how fast they are loaded, and from the caches."""
    for number, (kind, (ending, shape, write)) in enumerate(KINDS.items()):
        split = _files(folder / f"kind{number}", ending, shape, write, count)
        kilobytes = float(np.mean([Path(path).stat().st_size for path in split.paths])) / 1e3
        for amount in workers:
            yield _rate(kind, kilobytes, "files", split, amount)
        if kind == CACHED:
            stored = fill_cache(split, folder / "cache", SIZE, limit_bytes=1e9)
            yield _rate(kind, kilobytes, "cache on disk", split, 0, stored=stored)
            yield _rate(kind, kilobytes, "cache in memory", split, 0, cache=True)


def _files(
    folder: Path, ending: str, shape: tuple[int, ...], write: Callable[[Path, np.ndarray], None], count: int
) -> ImageFiles:
    folder.mkdir(parents=True)
    names = tuple(f"{n}{ending}" for n in range(count))
    for n, name in enumerate(names):
        write(folder / name, _radiograph(n, shape))
    nothing = (None,) * count
    paths = tuple(str(folder / name) for name in names)
    return ImageFiles(names, paths, ((),) * count, np.zeros((count, 1), np.float32), names, nothing, nothing)


def _rate(
    kind: str,
    kilobytes: float,
    source: str,
    split: ImageFiles,
    workers: int,
    *,
    stored: DecodedImages | None = None,
    cache: bool = False,
) -> ImageRate:
    """Times one pass behind another that fills caches and starts workers."""
    dataset = StudyDataset(
        split,
        [None] * len(split),
        None,
        ImageEncoderSpec("any", SIZE),
        text_tokens=1,
        augment_seed=0,
        cache=cache,
        stored=stored,
    )
    loader: DataLoader[Any] = make_loader(dataset, TrainConfig(batch_size=16, workers=workers), seed=0)
    for _ in loader:
        pass
    wall, processor = time.perf_counter(), time.process_time()
    for _ in loader:
        pass
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    return ImageRate(
        kind, kilobytes, source, workers, len(split) / wall, len(split) / processor if workers == 0 else None
    )
