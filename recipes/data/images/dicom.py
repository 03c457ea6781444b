"""Reads one DICOM image as 8 bits, the way a viewer would first show it."""

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recipes.data.images.dicom_window import first_window, windowed
from recipes.data.images.dicom_words import pixel_bits, pixel_padding
from recipes.data.images.intensity import stretch, stretch_min_max
from recipes.shared.extras import require

_PURPOSE = "reading a DICOM file"
_PIXEL_KEYWORDS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_ENDINGS = (".dcm", ".dicom")
_OLD_FILE = (
    "as in DICOM files of old programs. If it is one, pass force_dicom=True (on the command line --force-dicom; for "
    "labelled sets --options force_dicom=True)"
)
_PREAMBLE, _PREFIX = 128, b"DICM"


def is_dicom(path: Path | BytesIO) -> bool:
    """Tells whether a file is DICOM: by its ending, or by ``DICM`` after the 128 bytes of preamble."""
    if isinstance(path, Path) and path.suffix.lower() in _ENDINGS:
        return True
    return _head(path)[_PREAMBLE:] == _PREFIX


def lacks_dicom_header(path: Path | BytesIO) -> bool:
    """Tells whether a file that no other decoder knows may be DICOM without preamble: it begins with group 2 or 8."""
    head = _head(path)
    group = {head[:2], head[1::-1]} & {b"\x02\x00", b"\x08\x00"}
    return bool(group) and 0 in head[2:4]


def _head(path: Path | BytesIO) -> bytes:
    length = _PREAMBLE + len(_PREFIX)
    if isinstance(path, BytesIO):
        return path.getvalue()[:length]
    with path.open("rb") as file:
        return file.read(length)


def check_pixels(width: int, height: int, most: int) -> None:
    """Refuses an image of more than ``most`` pixels, or of none.

    Raises:
        ValueError: With the image's size.
    """
    if width < 1 or height < 1:
        raise ValueError(f"it claims {width} x {height} pixels, expected at least one")
    if width * height > most:
        raise ValueError(f"it claims {width} x {height} pixels, but at most {most:,} are read: scale it down")


def read_dicom(path: Path | BytesIO, *, force: bool = False, max_pixels: int | None = None) -> NDArray[np.uint8]:
    """Reads a single-frame DICOM image.

    Bits outside ``BitsStored`` and ``HighBit`` are no pixel data and are cleared, compressed or not (PS3.5 8.1.1).

    Greyscale goes through DICOM's own chain (PS3.3 C.11.1 and C.11.2): the rescale slope and intercept or
    modality LUT; then the first VOI LUT or, failing that, the first window, mapped to 0..255. Without either,
    unsigned data of 8 stored bits that the rescale leaves alone is kept as it is, and everything else is
    stretched from its smallest to its largest value, the pixel padding (PS3.3 C.7.5.1.1.2) left out.
    ``MONOCHROME1`` (small values are white) is inverted last, padding excepted: it stays black.

    Colour (RGB, YBR, palette) becomes RGB; more than 8 bits of it are stretched likewise.

    Args:
        path: The file, or its bytes.
        force: Whether to read a file without preamble and file meta group, as programs wrote before 1993: its
            transfer syntax is taken from its first element.
        max_pixels: Most pixels that are decoded, by the file's own rows and columns.

    Returns:
        ``uint8`` of shape ``(H, W)`` or ``(H, W, 3)``.

    Raises:
        ValueError: If the file has no preamble and ``force`` is off, holds no pixels, several frames, more pixels than
            ``max_pixels``, or a window that DICOM does not define.
        ImportError: If pydicom is not installed, or what decodes the file's compression.
    """
    pixels = require("pydicom.pixels", _PURPOSE)
    dataset = _dataset(path, force=force)
    if not any(keyword in dataset for keyword in _PIXEL_KEYWORDS):
        raise ValueError("the DICOM file holds no pixel data")
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames > 1:
        raise ValueError(f"it holds {frames} frames, expected one image: save the frame you want by itself")
    if max_pixels is not None:
        check_pixels(int(dataset.Columns), int(dataset.Rows), max_pixels)
    _check_decoder(dataset.file_meta.TransferSyntaxUID, pixels)
    # Bits that are no pixel data are cleared below: pydicom does so by BitsStored alone, and not for all compressions.
    words = pixels.pixel_array(dataset, correct_unused_bits=False)
    stored = pixel_bits(dataset, words)
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        stored = pixels.apply_color_lut(stored, dataset)
        # The table's entries span all 16 bits, whatever the image's own range.
        return stored if stored.dtype == np.uint8 else stretch(stored, 0, 65535)
    if stored.ndim == 3:
        return _colour(dataset, stored)
    return _grey(dataset, stored, pixel_padding(dataset, words, stored), pixels)


def number_of_frames(path: Path) -> int:
    """Returns how many frames a DICOM file holds, without reading its pixels; 1 for one that cannot be read."""
    pydicom = require("pydicom", _PURPOSE)
    try:
        dataset = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["NumberOfFrames"])
        return int(dataset.get("NumberOfFrames") or 1)
    except (OSError, ValueError, pydicom.errors.InvalidDicomError):
        return 1


def read_dicom_volume(path: Path, *, force: bool = False) -> NDArray[np.uint8]:
    """Reads the frames of a DICOM file as the slices of a volume, by the rules of :func:`read_dicom`.

    Windows and rescales are those of the whole file; of enhanced objects, which may have some for each frame, none is
    read, and the volume is stretched from its smallest to its largest value.

    Args:
        path: The file.
        force: Whether to read a file without preamble and file meta group.

    Returns:
        ``uint8`` of shape ``(frames, H, W, C)``, ``C`` 1 or 3.

    Raises:
        ValueError: If it holds no pixels, cannot be decoded, or colours are those of a palette.
    """
    pixels = require("pydicom.pixels", _PURPOSE)
    dataset = _dataset(path, force=force)
    if not any(keyword in dataset for keyword in _PIXEL_KEYWORDS):
        raise ValueError("the DICOM file holds no pixel data")
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        raise ValueError("the frames are coloured by a palette, which is read of single frames only")
    _check_decoder(dataset.file_meta.TransferSyntaxUID, pixels)
    try:
        words = pixels.pixel_array(dataset, correct_unused_bits=False)
    except Exception as error:  # decoders fail on damaged bytes with whatever they trip over
        raise ValueError(str(error) or type(error).__name__) from error
    stored = pixel_bits(dataset, words)
    coloured = int(dataset.get("SamplesPerPixel") or 1) > 1
    if int(dataset.get("NumberOfFrames") or 1) == 1:
        words, stored = words[None], stored[None]
    if coloured:
        return _colour(dataset, stored)
    return _grey(dataset, stored, pixel_padding(dataset, words, stored), pixels)[..., None]


def _dataset(path: Path | BytesIO, *, force: bool) -> Any:
    pydicom = require("pydicom", _PURPOSE)
    if isinstance(path, BytesIO):
        path.seek(0)
    try:
        dataset = pydicom.dcmread(path, force=force)
    except pydicom.errors.InvalidDicomError:
        raise ValueError(f"it has no DICOM preamble and no file meta group, {_OLD_FILE}") from None
    meta = getattr(dataset, "file_meta", None)
    if meta is None or "TransferSyntaxUID" not in meta:
        if not force:
            raise ValueError(f"its file meta group names no transfer syntax, {_OLD_FILE}")
        dataset.file_meta = meta or pydicom.dataset.FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = _plain_syntax(dataset, pydicom.uid)
    return dataset


def _plain_syntax(dataset: Any, uid: Any) -> Any:
    """Returns the uncompressed transfer syntax in which a file without file meta group was written."""
    implicit, little_endian = dataset.original_encoding
    if implicit:
        return uid.ImplicitVRLittleEndian
    return uid.ExplicitVRLittleEndian if little_endian else uid.ExplicitVRBigEndian


def _check_decoder(syntax: Any, pixels: Any) -> None:
    """Says how to install what decodes JPEG Lossless and JPEG-LS, where it is missing."""
    if syntax.is_encapsulated and not pixels.get_decoder(syntax).is_available:
        require("gdcm", f"{_PURPOSE} of the transfer syntax {syntax.name}", extra="dicom")
        raise ValueError(
            f"no decoder is known for its transfer syntax {syntax.name}: save it uncompressed, for example with "
            "gdcmconv --raw"
        )


def _colour(dataset: Any, stored: NDArray[Any]) -> NDArray[np.uint8]:
    if _is_8_bit(dataset, stored):
        return stored.astype(np.uint8)
    return stretch_min_max(stored)


def _is_8_bit(dataset: Any, stored: NDArray[Any]) -> bool:
    """Tells whether values are unsigned and of 8 stored bits, in how many bits they may be allocated."""
    return stored.dtype.kind == "u" and int(dataset.BitsStored) == 8


def _grey(dataset: Any, stored: NDArray[Any], padding: NDArray[np.bool_] | None, pixels: Any) -> NDArray[np.uint8]:
    """Applies modality LUT, VOI LUT or window, and photometric interpretation."""
    values = pixels.apply_modality_lut(stored, dataset)
    window = first_window(dataset)
    if dataset.get("VOILUTSequence"):
        _, first, bits = (int(value) for value in dataset.VOILUTSequence[0].LUTDescriptor)
        # A first value below zero may be written without its sign: 65534 for -2.
        unsigned = 2**16 if first >= 2**15 and values.min() < 0 else 0
        looked_up = pixels.apply_voi(np.rint(values).astype(np.int32) + unsigned, dataset)
        shown = stretch(looked_up, 0, 2**bits - 1)
    elif window is not None:
        shown = windowed(values, window)
    elif _is_8_bit(dataset, stored) and np.array_equal(values, stored):
        shown = stored.astype(np.uint8)
    else:
        shown = stretch_min_max(values, ignore=padding)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        shown = 255 - shown
    if padding is not None:
        shown[padding] = 0
    return shown
