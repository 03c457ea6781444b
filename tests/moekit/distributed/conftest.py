"""Processes for all tests of the folder."""

from collections.abc import Iterator

import pytest

from tests.moekit.distributed.ranks import Ranks


@pytest.fixture(scope="package")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    started = Ranks(4, str(tmp_path_factory.mktemp("ranks")))
    yield started
    started.close()


@pytest.fixture(scope="module")
def eight_ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    started = Ranks(8, str(tmp_path_factory.mktemp("ranks")))
    yield started
    started.close()
