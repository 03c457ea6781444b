"""The command that a stage hints at exists and works for the run's data."""

import shlex
from pathlib import Path

import pytest

from recipes.medmoe.__main__ import _ABOUT
from recipes.medmoe.hints import next_command


@pytest.mark.parametrize(
    ("after", "drawn", "other"),
    [
        ("pretrain", "zero-shot", "retrieve"),
        ("zero-shot", "retrieve", "retrieve"),
        ("retrieve", "probe", "explain"),
        ("probe", "explain", "explain"),
        ("explain", "report", "report"),
    ],
)
def test_hints(after, drawn, other):
    run = Path("runs/my run")
    for data, stage in (("phantom", drawn), ("pairs.csv", other)):
        words = shlex.split(next_command(run, after, data=data).removeprefix("next: "))
        assert words == ["python", "-m", "recipes.medmoe", stage, "runs/my run"]
        assert stage in _ABOUT
