"""Reads one DICOM image as 8 bits, the way a viewer would first show it."""

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recipes.data.images.intensity import stretch, stretch_min_max
from recipes.shared.extras import require

_PIXEL_KEYWORDS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")


def is_dicom(path: Path | BytesIO) -> bool:
    """Tells whether a file is DICOM: by its ending, or by ``DICM`` after the 128 bytes of preamble."""
    if isinstance(path, BytesIO):
        return path.getvalue()[128:132] == b"DICM"
    if path.suffix.lower() in (".dcm", ".dicom"):
        return True
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def read_dicom(path: Path | BytesIO) -> NDArray[np.uint8]:
    """Reads a single-frame DICOM image.

    Greyscale goes through DICOM's own chain (PS3.3 C.11.1 and C.11.2): the rescale slope and intercept or
    modality LUT; then the first VOI LUT or, failing that, the first window, mapped to 0..255. Without either,
    unsigned data of 8 stored bits that the rescale leaves alone is kept as it is, and everything else is
    stretched from its smallest to its largest value, the pixel padding value left out. ``MONOCHROME1`` (small
    values are white) is inverted last, padding excepted: it stays black.

    Colour (RGB, YBR, palette) becomes RGB; more than 8 bits of it are stretched likewise.

    Args:
        path: The file, or its bytes.

    Returns:
        ``uint8`` of shape ``(H, W)`` or ``(H, W, 3)``.

    Raises:
        ValueError: If the file holds no pixels, several frames, or a window that DICOM does not define.
        ImportError: If pydicom is not installed.
    """
    pydicom = require("pydicom", "reading a DICOM file")
    pixels = require("pydicom.pixels", "reading a DICOM file")
    dataset = pydicom.dcmread(path)
    if not any(keyword in dataset for keyword in _PIXEL_KEYWORDS):
        raise ValueError("the DICOM file holds no pixel data")
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames > 1:
        raise ValueError(f"it holds {frames} frames, expected one image: save the frame you want by itself")
    stored = pixels.pixel_array(dataset)
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        stored = pixels.apply_color_lut(stored, dataset)
        # The table's entries span all 16 bits, whatever the image's own range.
        return stored if stored.dtype == np.uint8 else stretch(stored, 0, 65535)
    if stored.ndim == 3:
        return stored if stored.dtype == np.uint8 else stretch_min_max(stored)
    return _grey(dataset, stored, pixels)


def _grey(dataset: Any, stored: NDArray[Any], pixels: Any) -> NDArray[np.uint8]:
    """Applies modality LUT, VOI LUT or window, and photometric interpretation."""
    padding = _padding(dataset, stored)
    values = pixels.apply_modality_lut(stored, dataset)
    center, width = _first(dataset, "WindowCenter"), _first(dataset, "WindowWidth")
    if dataset.get("VOILUTSequence"):
        bits = int(dataset.VOILUTSequence[0].LUTDescriptor[2])
        looked_up = pixels.apply_voi(np.rint(values).astype(np.int32), dataset)
        shown = stretch(looked_up, 0, 2**bits - 1)
    elif center is not None and width is not None:
        shown = _window(values, center, width, str(dataset.get("VOILUTFunction") or "LINEAR"))
    elif stored.dtype == np.uint8 and int(dataset.BitsStored) == 8 and np.array_equal(values, stored):
        shown = stored.copy()
    else:
        shown = stretch_min_max(values, ignore=padding)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        shown = 255 - shown
    if padding is not None:
        shown[padding] = 0
    return shown


def _padding(dataset: Any, stored: NDArray[Any]) -> NDArray[np.bool_] | None:
    """Marks the pixels outside the field of view, if the file names their value."""
    value = dataset.get("PixelPaddingValue")
    if value is None:
        return None
    mask = stored == int(value)
    return mask if mask.any() and not mask.all() else None


def _first(dataset: Any, keyword: str) -> float | None:
    """Reads an element of one or many numbers: the first one, or ``None``."""
    value = dataset.get(keyword)
    if value is None or value == "":
        return None
    return float(value if isinstance(value, int | float) else value[0])


def _window(values: NDArray[Any], center: float, width: float, function: str) -> NDArray[np.uint8]:
    """Maps a window to 0..255 (PS3.3 C.11.2.1.2 and C.11.2.1.3)."""
    smallest = 1.0 if function == "LINEAR" else np.nextafter(0.0, 1.0)
    if not width >= smallest:
        raise ValueError(f"its window width {width:g} is too small for the VOI LUT function {function}")
    if function == "LINEAR":
        half = (width - 1.0) / 2.0
        return stretch(values, center - 0.5 - half, center - 0.5 + half)
    if function == "LINEAR_EXACT":
        return stretch(values, center - width / 2.0, center + width / 2.0)
    if function == "SIGMOID":
        exponent = np.clip(-4.0 * (values.astype(np.float64) - center) / width, -700.0, 700.0)
        return stretch(1.0 / (1.0 + np.exp(exponent)), 0.0, 1.0)
    raise ValueError(f"its VOI LUT function {function!r} is none of LINEAR, LINEAR_EXACT, SIGMOID")
