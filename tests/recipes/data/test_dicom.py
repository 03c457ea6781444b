import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset

from recipes.data.images.dicom import is_dicom
from recipes.data.images.read import image_bytes_problem, image_problem, read_image, read_image_bytes
from recipes.shared import extras
from tests.recipes.data.dicom_files import write_dicom as write

CT = np.array([[0, 1000], [1040, 2000]], np.uint16)


def test_eight_bits_without_a_window_are_kept(tmp_path):
    stored = np.array([[5, 6], [7, 250]], np.uint8)
    path = write(tmp_path / "a.dcm", stored)
    np.testing.assert_array_equal(read_image(path), stored)
    assert image_problem(path) is None
    np.testing.assert_array_equal(read_image_bytes(path.read_bytes(), "a"), stored)
    assert image_bytes_problem(path.read_bytes(), "a") is None


def test_eight_bits_that_the_rescale_changes_are_stretched(tmp_path):
    stored = np.array([[10, 20], [30, 60]], np.uint8)
    path = write(tmp_path / "a.dcm", stored, RescaleSlope=2, RescaleIntercept=1)
    np.testing.assert_array_equal(read_image(path), [[0, 51], [102, 255]])


def test_more_bits_without_a_window_are_stretched(tmp_path):
    read = read_image(write(tmp_path / "a.dcm", CT))
    np.testing.assert_array_equal(read, np.rint(CT / 2000 * 255))


def test_signed_values_are_stretched(tmp_path):
    stored = np.array([[-1000, 0], [500, 1000]], np.int16)
    np.testing.assert_array_equal(read_image(write(tmp_path / "a.dcm", stored)), [[0, 128], [191, 255]])


@pytest.mark.parametrize(
    ("function", "low", "high"),
    [("LINEAR", -160.0, 239.0), ("LINEAR_EXACT", -160.0, 240.0), (None, -160.0, 239.0)],
)
def test_the_window_is_applied_to_rescaled_values(tmp_path, function, low, high):
    window = {"WindowCenter": 40, "WindowWidth": 400} | ({"VOILUTFunction": function} if function else {})
    read = read_image(write(tmp_path / "a.dcm", CT, RescaleSlope=1, RescaleIntercept=-1024, **window))
    hounsfield = CT.astype(float) - 1024
    np.testing.assert_array_equal(read, np.rint(255 * np.clip((hounsfield - low) / (high - low), 0, 1)))


def test_the_first_of_several_windows_is_taken(tmp_path):
    one = read_image(write(tmp_path / "a.dcm", CT, WindowCenter=1000, WindowWidth=200))
    two = read_image(write(tmp_path / "b.dcm", CT, WindowCenter=["1000", "50"], WindowWidth=["200", "9"]))
    np.testing.assert_array_equal(one, two)


def test_the_sigmoid_window(tmp_path):
    window = {"WindowCenter": 1000, "WindowWidth": 400, "VOILUTFunction": "SIGMOID"}
    read = read_image(write(tmp_path / "a.dcm", CT, **window))
    np.testing.assert_array_equal(read, np.rint(255 / (1 + np.exp(-4 * (CT.astype(float) - 1000) / 400))))


@pytest.mark.parametrize("function", [None, "LINEAR", "LINEAR_EXACT"])
def test_windows_narrower_than_one_value_are_exact(tmp_path, function):
    """Values rescaled to fractions have windows of such a width, whose ends LINEAR would swap."""
    window = {"WindowCenter": 0.5, "WindowWidth": 0.5} | ({"VOILUTFunction": function} if function else {})
    stored = np.array([[0, 350], [500, 650], [750, 1000]], np.uint16)
    read = read_image(write(tmp_path / "a.dcm", stored, RescaleSlope=0.001, RescaleIntercept=0, **window))
    np.testing.assert_array_equal(read, [[0, 51], [128, 204], [255, 255]])


def test_a_window_of_width_one_is_a_step(tmp_path):
    stored = np.array([[998, 999], [1000, 1001]], np.uint16)
    read = read_image(write(tmp_path / "a.dcm", stored, WindowCenter=1000, WindowWidth=1))
    np.testing.assert_array_equal(read, [[0, 0], [255, 255]])


def test_a_lookup_table_comes_before_the_window(tmp_path):
    table = Dataset()
    table.LUTDescriptor = [4, 0, 16]
    table.LUTData = np.array([0, 65535, 257, 514], "<u2").tobytes()
    stored = np.array([[0, 1], [2, 3]], np.uint16)
    path = write(tmp_path / "a.dcm", stored, VOILUTSequence=[table], WindowCenter=1, WindowWidth=2)
    np.testing.assert_array_equal(read_image(path), [[0, 255], [1, 2]])


@pytest.mark.parametrize("first", [-2, 65534])
def test_a_lookup_table_may_begin_below_zero(tmp_path, first):
    """Files write the first value that a table maps with a sign or without one."""
    table = Dataset()
    table.add_new("LUTDescriptor", "SS" if first < 0 else "US", [4, first, 16])
    table.LUTData = np.array([0, 257, 514, 65535], "<u2").tobytes()
    stored = np.array([[-3, -1], [0, 5]], np.int16)
    path = write(tmp_path / "a.dcm", stored, VOILUTSequence=[table])
    np.testing.assert_array_equal(read_image(path), [[0, 1], [2, 255]])


def test_a_lookup_table_is_inverted_where_small_is_white(tmp_path):
    table = Dataset()
    table.LUTDescriptor = [4, 0, 16]
    table.LUTData = np.array([0, 65535, 257, 514], "<u2").tobytes()
    stored = np.array([[0, 1], [2, 3]], np.uint16)
    path = write(tmp_path / "a.dcm", stored, VOILUTSequence=[table], PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_array_equal(read_image(path), [[255, 0], [254, 253]])


def test_small_is_white_is_inverted_after_the_window(tmp_path):
    window = {"WindowCenter": 1000, "WindowWidth": 200}
    plain = read_image(write(tmp_path / "a.dcm", CT, **window))
    inverted = read_image(write(tmp_path / "b.dcm", CT, PhotometricInterpretation="MONOCHROME1", **window))
    np.testing.assert_array_equal(inverted, 255 - plain)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_black_and_does_not_set_the_range(tmp_path, photometric):
    stored = np.array([[-2000, 100], [150, 200]], np.int16)
    read = read_image(write(tmp_path / "a.dcm", stored, PixelPaddingValue=-2000, PhotometricInterpretation=photometric))
    shown = [[0, 0], [128, 255]] if photometric == "MONOCHROME2" else [[0, 255], [127, 0]]
    np.testing.assert_array_equal(read, shown)


def test_colour_is_kept_and_deep_colour_stretched(tmp_path):
    stored = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    np.testing.assert_array_equal(read_image(write(tmp_path / "a.dcm", stored)), stored)
    deep = read_image(write(tmp_path / "b.dcm", stored.astype(np.uint16) * 1000))
    np.testing.assert_array_equal(deep, np.rint(stored / 11 * 255))


def test_ybr_becomes_rgb(tmp_path):
    stored = np.full((2, 2, 3), 128, np.uint8)
    stored[..., 0] = [[0, 60], [120, 255]]
    read = read_image(write(tmp_path / "a.dcm", stored, PhotometricInterpretation="YBR_FULL"))
    np.testing.assert_array_equal(read, np.stack([stored[..., 0]] * 3, -1))


def test_a_palette_becomes_rgb(tmp_path):
    entries = np.array([0, 32896, 65535], "<u2")
    tables = {}
    for colour, values in (("Red", entries), ("Green", entries[::-1]), ("Blue", entries * 0)):
        tables[f"{colour}PaletteColorLookupTableDescriptor"] = [3, 0, 16]
        tables[f"{colour}PaletteColorLookupTableData"] = values.tobytes()
    stored = np.array([[0, 1], [2, 0]], np.uint8)
    path = write(tmp_path / "a.dcm", stored, PhotometricInterpretation="PALETTE COLOR", **tables)
    np.testing.assert_array_equal(read_image(path), [[[0, 255, 0], [128, 128, 0]], [[255, 0, 0], [0, 255, 0]]])


def test_known_by_ending_or_by_what_it_holds(tmp_path):
    path = write(tmp_path / "no_ending", CT)
    assert is_dicom(path)
    np.testing.assert_array_equal(read_image(path), np.rint(CT / 2000 * 255))
    (tmp_path / "a.png").write_bytes(b"short")
    assert not is_dicom(tmp_path / "a.png")


def test_refuses_what_is_no_single_image(tmp_path):
    path = write(tmp_path / "a.dcm", CT, NumberOfFrames=2, Rows=1)
    with pytest.raises(ValueError, match=r"a\.dcm': it holds 2 frames, expected one image"):
        read_image(path)
    data = pydicom.dcmread(write(tmp_path / "b.dcm", CT))
    del data.PixelData
    data.save_as(tmp_path / "b.dcm")
    with pytest.raises(ValueError, match=r"b\.dcm': the DICOM file holds no pixel data"):
        read_image(tmp_path / "b.dcm")


@pytest.mark.parametrize(
    ("window", "message"),
    [
        ({"WindowWidth": 0}, "its window width 0 is too small for the VOI LUT function LINEAR"),
        ({"WindowWidth": 0, "VOILUTFunction": "SIGMOID"}, "its window width 0 is too small .* SIGMOID"),
        ({"WindowWidth": 9, "VOILUTFunction": "CUBIC"}, "its VOI LUT function 'CUBIC' is none of"),
    ],
)
def test_refuses_windows_that_dicom_does_not_define(tmp_path, window, message):
    path = write(tmp_path / "a.dcm", CT, WindowCenter=5, **window)
    with pytest.raises(ValueError, match=message):
        read_image(path)


def test_refuses_damaged_files_by_name(tmp_path):
    (tmp_path / "text.dcm").write_text("not DICOM")
    with pytest.raises(ValueError, match=r"cannot read the image '.*text\.dcm'"):
        read_image(tmp_path / "text.dcm")
    data = write(tmp_path / "cut.dcm", np.zeros((64, 64), np.uint16)).read_bytes()
    (tmp_path / "cut.dcm").write_bytes(data[:-4000])
    assert image_problem(tmp_path / "cut.dcm")
    with pytest.raises(ValueError, match=r"cannot read the image '.*cut\.dcm'"):
        read_image(tmp_path / "cut.dcm")


@pytest.mark.parametrize("function", [read_image, image_problem])
def test_says_how_to_install_pydicom(tmp_path, monkeypatch, function):
    path = write(tmp_path / "a.dcm", CT)
    present = extras.importlib.import_module

    def without_pydicom(module):
        if module.startswith("pydicom"):
            raise ModuleNotFoundError(f"No module named {module!r}")
        return present(module)

    monkeypatch.setattr(extras.importlib, "import_module", without_pydicom)
    with pytest.raises(ImportError, match=r'reading a DICOM file needs pydicom.*pip install "moekit\[recipes\]"'):
        function(path)
