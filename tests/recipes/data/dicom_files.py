"""Writes DICOM files of one image."""

import io

import numpy as np
from PIL import Image
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRLittleEndian, generate_uid


def image_dataset(stored, **elements):
    """The elements of a DICOM file of one image, with others added or replaced."""
    data = Dataset()
    data.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    data.SOPInstanceUID = generate_uid()
    bits = stored.dtype.itemsize * 8
    data.Rows, data.Columns = stored.shape[:2]
    data.SamplesPerPixel = 3 if stored.ndim == 3 else 1
    if stored.ndim == 3:
        data.PlanarConfiguration = 0
    data.PhotometricInterpretation = "RGB" if stored.ndim == 3 else "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit = bits, bits, bits - 1
    data.PixelRepresentation = int(stored.dtype.kind == "i")
    data.PixelData = stored.tobytes()
    data["PixelData"].VR = "OW" if bits > 8 else "OB"
    for keyword, value in elements.items():
        if isinstance(value, DataElement):
            data.add(value)
        else:
            setattr(data, keyword, value)
    return data


def write_dicom(path, stored, *, syntax=ExplicitVRLittleEndian, code=None, **elements):
    """Writes a DICOM file of one image; ``code`` is its compressed form in the transfer syntax ``syntax``."""
    data = image_dataset(stored, **elements)
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = syntax
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
    if code is not None:
        data.PixelData = encapsulate([code])
        data["PixelData"].VR = "OB"
        data["PixelData"].is_undefined_length = True
    data.save_as(path, enforce_file_format=True)
    return path


def jpeg_2000(words):
    """A lossless JPEG 2000 code stream."""
    code = io.BytesIO()
    Image.fromarray(words).save(code, "JPEG2000", no_jp2=True, irreversible=False)
    return code.getvalue()


def jpeg_lossless(words, bits):
    """A JPEG Lossless code stream (ITU-T T.81, process 14, first-order prediction), each category coded in 5 bits."""
    differences = words.astype(np.int64)
    predicted = np.empty_like(differences)
    predicted[:, 1:] = differences[:, :-1]
    predicted[1:, 0] = differences[:-1, 0]
    predicted[0, 0] = 2 ** (bits - 1)
    scan = ""
    for difference in (32768 - (predicted - differences + 32768) % 65536).ravel().tolist():  # in -32767 .. 32768
        category = abs(difference).bit_length()
        scan += f"{category:05b}"
        if 0 < category < 16:
            scan += f"{difference if difference > 0 else difference + 2**category - 1:0{category}b}"
    scan += "1" * (-len(scan) % 8)
    data = int(scan, 2).to_bytes(len(scan) // 8, "big").replace(b"\xff", b"\xff\x00")
    height, width = words.shape

    def segment(marker, *content):
        body = b"".join(part if isinstance(part, bytes) else bytes([part]) for part in content)
        return bytes([0xFF, marker]) + (len(body) + 2).to_bytes(2, "big") + body

    frame = segment(0xC3, bits, height.to_bytes(2, "big"), width.to_bytes(2, "big"), 1, 1, 0x11, 0)
    table = segment(0xC4, 0, 0, 0, 0, 0, 17, *[0] * 11, *range(17))
    start = segment(0xDA, 1, 1, 0, 1, 0, 0)
    return b"\xff\xd8" + frame + table + start + data + b"\xff\xd9"
