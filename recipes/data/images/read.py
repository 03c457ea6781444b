"""Reads one medical image file of any common kind as 8 bits."""

from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from recipes.data.images.dicom import check_pixels, is_dicom, lacks_dicom_header, read_dicom
from recipes.data.images.intensity import stretch_min_max
from recipes.data.images.unreadable import UnreadableImageError
from recipes.shared.extras import require

_DEEP_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")
_PHOTOMETRIC_TAG, _WHITE_IS_ZERO = 262, 0
SAFE_KINDS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP", "JPEG2000")
"""Pillow's names of the kinds that medical images come in; the others run more code, some of it programs outside."""


class ImageLimits(NamedTuple):
    """What a file from an unknown sender may ask of a decoder; checked before any pixel is decoded.

    Attributes:
        max_pixels: Most pixels of an image.
        kinds: Pillow's names of the kinds that are read, besides DICOM.
    """

    max_pixels: int = 40_000_000
    kinds: tuple[str, ...] = SAFE_KINDS


def read_image(path: str | Path, *, force_dicom: bool = False, limits: ImageLimits | None = None) -> NDArray[np.uint8]:
    """Reads PNG, JPEG, TIFF, DICOM and whatever else Pillow opens.

    The rules, all of one image alone and without chance:

    - 8-bit grey and colour are kept; one bit becomes 0 and 255; CMYK and other colour becomes RGB.
    - Grey of more than 8 bits (16-bit PNG and TIFF, float TIFF) is stretched from its own smallest value to
      its largest (`recipes.data.images.intensity.stretch_min_max`); TIFF's white-is-zero is inverted.
    - 16-bit colour PNG is read by its high bytes, which is what Pillow gives.
    - A palette becomes RGB, or grey if all its colours are grey. Transparency is laid over black.
    - The orientation a camera wrote (EXIF) is applied.
    - DICOM: see `recipes.data.images.dicom.read_dicom`.

    Args:
        path: The file.
        force_dicom: Whether DICOM files without preamble and file meta group are read.
        limits: What is refused before it is decoded; without any, only what Pillow takes for an attack.

    Returns:
        ``uint8`` of shape ``(H, W)`` or ``(H, W, 3)``, writable and owned by the caller.

    Raises:
        ValueError: If the file is missing, empty, damaged, of no known kind, holds several frames, or is beyond the
            limits; the message names it.
        ImportError: If Pillow or pydicom is not installed, or what decodes a DICOM file's compression.
    """
    path = Path(path)
    _check_file(path)
    return _read(path, str(path), force_dicom, limits)


def read_image_bytes(data: bytes, name: str, *, force_dicom: bool = False) -> NDArray[np.uint8]:
    """Reads an image that is not a file of its own, by the rules of `read_image`.

    Args:
        data: What the file would hold.
        name: What to call it in messages.
        force_dicom: Whether DICOM data without preamble and file meta group is read.

    Returns:
        ``uint8`` of shape ``(H, W)`` or ``(H, W, 3)``, writable and owned by the caller.

    Raises:
        ValueError: If the image is empty, damaged, of no known kind, or holds several frames; the message
            names it.
        ImportError: If Pillow or pydicom is not installed, or what decodes a DICOM file's compression.
    """
    if not data:
        raise UnreadableImageError(f"image {name!r} is empty (0 bytes)")
    return _read(BytesIO(data), name, force_dicom)


def _read(file: Path | BytesIO, name: str, force_dicom: bool, limits: ImageLimits | None = None) -> NDArray[np.uint8]:
    try:
        if is_dicom(file) or _is_headless_dicom(file):
            return read_dicom(file, force=force_dicom, max_pixels=None if limits is None else limits.max_pixels)
        return _read_with_pillow(file, limits)
    except ImportError:
        raise
    # Decoders fail on damaged bytes with whatever they trip over: OSError, SyntaxError, struct.error, ...
    except Exception as error:
        raise UnreadableImageError(f"cannot read the image {name!r}: {_reason(error)}") from error


def _is_headless_dicom(file: Path | BytesIO) -> bool:
    """Tells whether a file that Pillow cannot identify begins as DICOM does behind its preamble."""
    if not lacks_dicom_header(file):
        return False
    image_module = require("PIL.Image", "reading an image")
    try:
        with image_module.open(file):
            return False
    except image_module.UnidentifiedImageError:
        return True


def image_problem(path: str | Path, *, force_dicom: bool = False) -> str | None:
    """Says what is wrong with an image file, without reading more of it than it takes.

    PNG is checked by its checksums and JPEG by a decode at an eighth of its size, which a truncated file does
    not survive; every other kind is read in full.

    Args:
        path: The file.
        force_dicom: As in `read_image`.

    Returns:
        One sentence, or ``None`` if the file is sound.

    Raises:
        ImportError: If Pillow or pydicom is not installed, or what decodes a DICOM file's compression.
    """
    path = Path(path)
    try:
        _check_file(path)
    except ValueError as error:
        return _reason(error)
    return _problem(path, str(path), force_dicom)


def image_bytes_problem(data: bytes, name: str, *, force_dicom: bool = False) -> str | None:
    """Says what is wrong with an image that is not a file of its own, as `image_problem` does.

    Args:
        data: What the file would hold.
        name: What to call it in messages.
        force_dicom: As in `read_image_bytes`.

    Returns:
        One sentence, or ``None`` if the image is sound.

    Raises:
        ImportError: If Pillow or pydicom is not installed, or what decodes a DICOM file's compression.
    """
    return _problem(BytesIO(data), name, force_dicom) if data else f"image {name!r} is empty (0 bytes)"


def _problem(file: Path | BytesIO, name: str, force_dicom: bool) -> str | None:
    image_module = require("PIL.Image", "reading an image")
    try:
        kind = None if is_dicom(file) or _is_headless_dicom(file) else _verify_with_pillow(file, image_module)
        if kind not in ("PNG", "JPEG"):
            _read(file, name, force_dicom)
    except ImportError:
        raise
    except Exception as error:
        return _reason(error)
    return None


def _check_file(path: Path) -> None:
    if not path.exists():
        raise UnreadableImageError(f"image file {str(path)!r} does not exist")
    if not path.is_file():
        raise UnreadableImageError(f"image file {str(path)!r} is not a file")
    if path.stat().st_size == 0:
        raise UnreadableImageError(f"image file {str(path)!r} is empty (0 bytes)")


def _reason(error: Exception) -> str:
    # Pillow would print where in memory the bytes lie.
    if type(error).__name__ == "UnidentifiedImageError":
        return "cannot identify its kind: no decoder knows it"
    return str(error) or type(error).__name__


def _verify_with_pillow(path: Path | BytesIO, image_module: Any) -> str | None:
    """Checks a file as far as is cheap and returns its kind."""
    with image_module.open(path) as image:
        _check_one_frame(image)
        kind = image.format
        image.verify()
    if kind == "JPEG":
        with image_module.open(path) as image:
            image.draft(image.mode, (max(1, image.width // 8), max(1, image.height // 8)))
            image.load()
    return kind


def _check_one_frame(image: Any) -> None:
    frames = getattr(image, "n_frames", 1)
    # MPO is a camera's JPEG with a preview behind the picture: its first frame is the picture.
    if frames > 1 and image.format != "MPO":
        raise ValueError(f"it holds {frames} frames, expected one image: save the frame you want by itself")


def _read_with_pillow(path: Path | BytesIO, limits: ImageLimits | None) -> NDArray[np.uint8]:
    image_module = require("PIL.Image", "reading an image")
    operations = require("PIL.ImageOps", "reading an image")
    with image_module.open(path, formats=None if limits is None else limits.kinds) as file:
        if limits is None:
            _check_one_frame(file)
        else:
            check_pixels(*file.size, limits.max_pixels)
            # Counting the frames of a long chain would take its time.
            if getattr(file, "is_animated", False) and file.format != "MPO":
                raise ValueError("it holds several frames, expected one image: save the frame you want by itself")
        inverted = file.format == "TIFF" and file.tag_v2.get(_PHOTOMETRIC_TAG) == _WHITE_IS_ZERO
        image = operations.exif_transpose(file)
    if image.mode in _DEEP_MODES:
        # Pillow inverts white-is-zero for 8 bits and less, but not here.
        grey = stretch_min_max(np.asarray(image))
        return 255 - grey if inverted else grey
    mode = "L" if _is_grey(image) else "RGB"
    if image.has_transparency_data:
        black = image_module.new("RGBA", image.size, (0, 0, 0, 255))
        image = image_module.alpha_composite(black, image.convert("RGBA"))
    return np.array(image.convert(mode))


def _is_grey(image: Any) -> bool:
    if image.mode in ("P", "PA"):
        colours = np.array(image.getpalette("RGB")).reshape(-1, 3)
        return bool((colours == colours[:, :1]).all())
    return image.mode in ("1", "L", "LA", "La")
