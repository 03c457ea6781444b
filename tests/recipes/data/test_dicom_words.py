"""Bits that are no pixel data, 8 bits in wider words, padding, and files of old programs."""

import numpy as np
import pydicom
import pytest
from pydicom.dataelem import DataElement
from pydicom.pixels import get_decoder
from pydicom.pixels.encoders import RLELosslessEncoder
from pydicom.uid import JPEG2000Lossless, JPEGLosslessSV1, JPEGLSLossless, RLELossless

from recipes.data.images.read import image_bytes_problem, image_problem, read_image, read_image_bytes
from recipes.shared import extras
from tests.recipes.data.dicom_files import image_dataset, jpeg_2000, jpeg_lossless, write_dicom

RAMP = np.tile(np.arange(0, 4096, 64, dtype=np.uint16), (64, 1))
TWELVE = {"BitsStored": 12, "HighBit": 11}
BITS_DISAGREE = "ignore:The .0028,0101. 'Bits Stored' value:UserWarning"
"""pydicom's warning where a code stream holds more bits than the file says."""


def rle(words):
    """An RLE code stream of 16-bit words."""
    return RLELosslessEncoder.encode(
        words.tobytes(),
        rows=words.shape[0],
        columns=words.shape[1],
        samples_per_pixel=1,
        bits_allocated=16,
        bits_stored=16,
        pixel_representation=0,
        number_of_frames=1,
        photometric_interpretation="MONOCHROME2",
    )


def marked(words):
    """Nine pixels of an overlay in the top bit."""
    words = words.copy()
    words[:3, :3] |= 0x8000
    return words


@pytest.mark.filterwarnings(BITS_DISAGREE)
@pytest.mark.parametrize("compression", ["none", "rle", "jpeg-2000", "jpeg-lossless"])
def test_bits_above_the_highest_are_no_pixel_data(tmp_path, compression):
    if compression == "jpeg-lossless":
        pytest.importorskip("gdcm")
    syntax, encode = {
        "none": (None, None),
        "rle": (RLELossless, rle),
        "jpeg-2000": (JPEG2000Lossless, jpeg_2000),
        "jpeg-lossless": (JPEGLosslessSV1, lambda words: jpeg_lossless(words, 16)),
    }[compression]
    compressed = {} if syntax is None else {"syntax": syntax, "code": encode(marked(RAMP))}
    read = read_image(write_dicom(tmp_path / "a.dcm", marked(RAMP), **TWELVE, **compressed))
    np.testing.assert_array_equal(read, np.rint(RAMP / RAMP.max() * 255))


def test_pixels_may_lie_in_the_upper_bits_of_their_words(tmp_path):
    words = (RAMP << 4) | 0x000A
    read = read_image(write_dicom(tmp_path / "a.dcm", words, BitsStored=12, HighBit=15))
    np.testing.assert_array_equal(read, np.rint(RAMP / RAMP.max() * 255))


def test_signed_values_of_fewer_bits_keep_their_sign(tmp_path):
    values = np.array([[-2048, -1], [0, 2047]], np.int16)
    words = values & 0x0FFF | 0x4000  # the sign of 12 bits lies in bit 11; bit 14 is not theirs
    window = {"WindowCenter": 0, "WindowWidth": 4096, "VOILUTFunction": "LINEAR_EXACT"}
    read = read_image(write_dicom(tmp_path / "a.dcm", words.astype(np.int16), **TWELVE, **window))
    np.testing.assert_array_equal(read, [[0, 127], [128, 255]])


def test_deep_colour_has_unused_bits_too(tmp_path):
    stored = np.arange(12, dtype=np.uint16).reshape(2, 2, 3) * 300
    read = read_image(write_dicom(tmp_path / "a.dcm", stored | 0x8000, **TWELVE))
    np.testing.assert_array_equal(read, np.rint(stored / 3300 * 255))


@pytest.mark.parametrize("shape", [(4, 100), (4, 25, 3), (2, 50)], ids=str)
def test_eight_bits_are_kept_in_words_of_any_width(tmp_path, shape):
    grey = np.resize(np.arange(50, 150, dtype=np.uint8), shape)
    for name, words in (("narrow", grey), ("wide", grey.astype(np.uint16))):
        path = write_dicom(tmp_path / f"{name}.dcm", words, BitsStored=8, HighBit=7)
        np.testing.assert_array_equal(read_image(path), grey)


def test_signed_eight_bits_are_stretched(tmp_path):
    stored = np.array([[-100, 0], [20, 100]], np.int8)
    np.testing.assert_array_equal(read_image(write_dicom(tmp_path / "a.dcm", stored)), [[0, 128], [153, 255]])


TISSUE = np.full((10, 10), 1000, np.int16)
TISSUE[3:7, 3:7] = np.arange(16).reshape(4, 4) * 10 + 1000
TISSUE[:, :2] = -2000
TISSUE[:, 2] = -1990


@pytest.mark.parametrize(("value", "limit"), [(-2000, -1980), (-1980, -2000), (-2000, -1990)])
def test_padding_may_be_a_range_in_either_order(tmp_path, value, limit):
    padding = {"PixelPaddingValue": value, "PixelPaddingRangeLimit": limit}
    read = read_image(write_dicom(tmp_path / "a.dcm", TISSUE, **padding))
    tissue = read[:, 3:]
    assert (read[:, :3] == 0).all()
    np.testing.assert_array_equal(tissue, np.rint((TISSUE[:, 3:] - 1000.0) / 150 * 255))


def test_without_a_range_the_padding_is_one_value(tmp_path):
    read = read_image(write_dicom(tmp_path / "a.dcm", TISSUE, PixelPaddingValue=-2000))
    assert read[0, 2] == 0
    assert read[0, 5] == round(2990 / 3140 * 255)


@pytest.mark.parametrize(
    ("stored", "value", "representation"),
    [
        (np.array([[-2000, 100], [150, 200]], np.int16), 63536, "US"),
        (np.array([[63536, 100], [150, 200]], np.uint16), -2000, "SS"),
    ],
    ids=["unsigned-number-of-signed-pixels", "signed-number-of-unsigned-pixels"],
)
def test_padding_is_read_with_the_sign_of_the_pixels(tmp_path, stored, value, representation):
    padding = DataElement("PixelPaddingValue", representation, value)
    path = write_dicom(tmp_path / "a.dcm", stored, PixelPaddingValue=padding)
    np.testing.assert_array_equal(read_image(path), [[0, 0], [128, 255]])


def test_padding_beyond_the_stored_bits_is_that_of_the_whole_word(tmp_path):
    stored = np.array([[0x8000, 100], [150, 200]], np.uint16)
    read = read_image(write_dicom(tmp_path / "a.dcm", stored, PixelPaddingValue=0x8000, **TWELVE))
    np.testing.assert_array_equal(read, [[0, 0], [128, 255]])


def test_padding_of_real_numbers(tmp_path):
    values = np.array([[-9.5, 0.25], [0.5, 0.75]], np.float32)
    path = write_dicom(tmp_path / "a.dcm", values.view(np.int32))
    data = pydicom.dcmread(path)
    for keyword in ("PixelData", "BitsStored", "HighBit", "PixelRepresentation"):
        delattr(data, keyword)
    data.FloatPixelData, data.FloatPixelPaddingValue, data.FloatPixelPaddingRangeLimit = values.tobytes(), -10.0, -9.0
    data.save_as(path, enforce_file_format=True)
    np.testing.assert_array_equal(read_image(path), [[0, 0], [128, 255]])


@pytest.mark.parametrize("syntax", ["implicit", "explicit", "big-endian", "meta-without-preamble"])
@pytest.mark.parametrize("name", ["old.dcm", "IM0001"])
def test_files_without_a_preamble_are_read_when_forced(tmp_path, syntax, name):
    path = tmp_path / name
    data = image_dataset(RAMP, **TWELVE)
    if syntax == "meta-without-preamble":
        path.write_bytes(write_dicom(path, RAMP, **TWELVE).read_bytes()[132:])
    else:
        if syntax == "big-endian":
            data.PixelData = RAMP.byteswap().tobytes()
        data.save_as(path, implicit_vr=syntax == "implicit", little_endian=syntax != "big-endian")
    expected = np.rint(RAMP / RAMP.max() * 255)
    np.testing.assert_array_equal(read_image(path, force_dicom=True), expected)
    np.testing.assert_array_equal(read_image_bytes(path.read_bytes(), name, force_dicom=True), expected)
    assert image_problem(path, force_dicom=True) is None
    assert image_bytes_problem(path.read_bytes(), name, force_dicom=True) is None
    message = r"no DICOM preamble and no file meta group.*pass force_dicom=True \(on the command line --force-dicom"
    with pytest.raises(ValueError, match=message):
        read_image(path)
    with pytest.raises(ValueError, match=message):
        read_image_bytes(path.read_bytes(), name)


def test_files_that_name_no_transfer_syntax_are_read_when_forced(tmp_path):
    body = write_dicom(tmp_path / "a.dcm", RAMP, **TWELVE)
    data = pydicom.dcmread(body)
    del data.file_meta.TransferSyntaxUID
    data.save_as(tmp_path / "b.dcm", implicit_vr=False, little_endian=True)
    with pytest.raises(ValueError, match=r"b\.dcm': its file meta group names no transfer syntax.*--force-dicom"):
        read_image(tmp_path / "b.dcm")
    np.testing.assert_array_equal(read_image(tmp_path / "b.dcm", force_dicom=True), read_image(body))


def test_forcing_reads_no_other_file_as_dicom(tmp_path):
    (tmp_path / "text.dcm").write_text("not DICOM")
    with pytest.raises(ValueError, match=r"text\.dcm'"):
        read_image(tmp_path / "text.dcm", force_dicom=True)
    (tmp_path / "a.bin").write_bytes(b"\x08\x00 nothing")
    with pytest.raises(ValueError, match="cannot identify its kind"):
        read_image(tmp_path / "a.bin", force_dicom=True)
    whole = write_dicom(tmp_path / "whole.dcm", RAMP, **TWELVE)
    np.testing.assert_array_equal(read_image(whole, force_dicom=True), read_image(whole))


def test_jpeg_lossless_is_read_with_the_extra(tmp_path):
    pytest.importorskip("gdcm")
    path = write_dicom(tmp_path / "a.dcm", RAMP, syntax=JPEGLosslessSV1, code=jpeg_lossless(RAMP, 12), **TWELVE)
    np.testing.assert_array_equal(read_image(path), np.rint(RAMP / RAMP.max() * 255))


@pytest.mark.parametrize("bits", [8, 12])
def test_jpeg_ls_is_read_with_the_extra(tmp_path, bits):
    jpeg_ls = pytest.importorskip("jpeg_ls")
    words = RAMP if bits == 12 else (RAMP >> 4).astype(np.uint8)
    code = bytes(jpeg_ls.encode_array(words))
    stored = {"BitsStored": bits, "HighBit": bits - 1}
    path = write_dicom(tmp_path / "a.dcm", words, syntax=JPEGLSLossless, code=code, **stored)
    np.testing.assert_array_equal(read_image(path), words if bits == 8 else np.rint(RAMP / RAMP.max() * 255))


@pytest.mark.parametrize("syntax", [JPEGLosslessSV1, JPEGLSLossless])
@pytest.mark.parametrize("function", [read_image, image_problem])
def test_without_the_extra_the_error_names_it(tmp_path, monkeypatch, syntax, function):
    path = write_dicom(tmp_path / "a.dcm", RAMP, syntax=syntax, code=b"any", **TWELVE)
    monkeypatch.setattr(type(get_decoder(syntax)), "is_available", property(lambda self: False))
    present = extras.importlib.import_module

    def without_gdcm(module):
        if module == "gdcm":
            raise ModuleNotFoundError("No module named 'gdcm'")
        return present(module)

    monkeypatch.setattr(extras.importlib, "import_module", without_gdcm)
    message = r'reading a DICOM file of the transfer syntax JPEG.*needs gdcm.*pip install "moekit\[dicom\]"'
    with pytest.raises(ImportError, match=message):
        function(path)


def test_a_transfer_syntax_that_nothing_decodes_is_named(tmp_path, monkeypatch):
    pytest.importorskip("gdcm")
    path = write_dicom(tmp_path / "a.dcm", RAMP, syntax=JPEGLosslessSV1, code=b"any", **TWELVE)
    monkeypatch.setattr(type(get_decoder(JPEGLosslessSV1)), "is_available", property(lambda self: False))
    with pytest.raises(ValueError, match=r"no decoder is known for its transfer syntax JPEG Lossless.*gdcmconv --raw"):
        read_image(path)
