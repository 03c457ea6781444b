import json

import pytest

from recipes.shared.extras import require


def test_gives_the_module_itself():
    assert require("json", "a test") is json


def test_says_what_needs_the_package_and_how_to_install_it():
    with pytest.raises(ImportError, match=r'reading a star needs no_such_package.*pip install "moekit\[recipes\]"'):
        require("no_such_package.inner", "reading a star")
