"""Errors of readers name what the caller types: an argument of Python, a flag, or ``--options name=value``."""

import re
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from recipes.data.arguments import Spelling, argument, flags_of, remedy, spelled

DATA = Path(__file__).parents[3] / "recipes" / "data"
COMMAND = Spelling({"size": "--data-size", "download": "--download", "splits": "--splits"}, frozenset({"fold"}))


def test_a_call_from_python_names_arguments_with_their_values():
    assert argument("image_root") == "image_root"
    assert argument("on_bad_image", "skip") == "on_bad_image='skip'"
    assert [argument("x", value) for value in ("None", "True", "3", "0.5")] == ["x=None", "x=True", "x=3", "x=0.5"]
    assert remedy("Pass {task=multi-label}, or {classes}.") == "Pass task='multi-label', or classes."


def test_a_command_names_its_flags_and_options():
    with spelled(COMMAND):
        assert argument("size") == "--data-size"
        assert argument("size", "64") == "--data-size 64"
        assert argument("download", "True") == "--download"
        assert argument("splits", "False") == "--no-splits"
        assert argument("fold", "2") == "--options fold=2"
        assert remedy("Set {fold}.") == "Set --options fold=VALUE."


def test_what_a_command_lacks_is_no_remedy():
    with spelled(COMMAND):
        assert remedy("Set {size}, or {on_bad_image=skip}.") == ""
        assert argument("on_bad_image") == "on_bad_image"
        with spelled(Spelling({"on_bad_image": "--on-bad-image"})):
            assert remedy("{on_bad_image=skip}") == "--on-bad-image skip"
        assert remedy("{on_bad_image=skip}") == ""
    assert remedy("{on_bad_image=skip}") == "on_bad_image='skip'"


def test_an_error_restores_the_spelling():
    @spelled(COMMAND)
    def fail():
        raise ValueError(argument("size"))

    for _ in range(2):
        with pytest.raises(ValueError, match=r"^--data-size$"):
            fail()
    assert argument("size") == "size"


def test_flags_follow_settings_within_settings():
    @dataclass
    class Inner:
        split_seed: int = 0

    @dataclass
    class Outer:
        data_size: int = 1
        inner: Inner = field(default_factory=Inner)

    Outer.__annotations__["inner"] = Inner
    flags = flags_of([Outer], renamed={"size": "data_size", "seed": "split_seed"})
    assert flags == {
        "data_size": "--data-size",
        "split_seed": "--split-seed",
        "size": "--data-size",
        "seed": "--split-seed",
    }
    with pytest.raises(KeyError):
        flags_of([Outer], renamed={"size": "absent"})


SPELT_OUT = {
    "__main__.py": None,  # a command
    "arguments.py": None,
    "leakage.py": "--run",  # of the command alone
    "prints.py": "--similarity",  # of the same
    "decoded_cache.py": "--cache-",  # settings, no arguments of a reader
    "image_folders.py": "--image",
    "images/dicom.py": "--force-dicom|--options force_dicom=True|--raw",  # raised in workers: it names all three
    "chest/files.py": "--data",
}


def test_no_reader_spells_a_flag_itself():
    """Flags that stand in a reader would be wrong for every other command that calls it."""
    for path in sorted(DATA.rglob("*.py")):
        name = path.relative_to(DATA).as_posix()
        if SPELT_OUT.get(name, "") is None:
            continue
        text = re.sub(SPELT_OUT[name], "", path.read_text()) if name in SPELT_OUT else path.read_text()
        assert not re.findall(r"(?<![-\w])--[a-z][a-z-]+", text), name
