"""Fixtures for tests of released models."""

from pathlib import Path

import pytest

from tests.recipes.medmoe.models.saved import save_text_tower


@pytest.fixture
def tower(tmp_path: Path) -> Path:
    """A folder of a small text tower and its tokenizer."""
    return save_text_tower(tmp_path / "tower")
