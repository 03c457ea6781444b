"""Small pictures and tables for folders of every layout."""

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def picture():
    """Writes one grey picture; returns its path."""

    def write(path, shade=100, size=(6, 8)):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full(size, shade, np.uint8)).save(path)
        return path

    return write


@pytest.fixture
def table():
    """Writes a csv from its header and rows; returns its path."""

    def write(path, header, rows):
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [",".join(map(str, cells)) for cells in ([header] if header else []) + list(rows)]
        path.write_text("\n".join(lines) + "\n")
        return path

    return write
