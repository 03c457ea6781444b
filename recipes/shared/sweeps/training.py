"""The training of a cell, whatever an earlier attempt left in its folder."""

import shutil
from collections.abc import Callable
from pathlib import Path


def go_on_or_begin(run: Path, train: Callable[[], object]) -> None:
    """Trains; a run that a killed attempt began goes on from its last checkpoint, or begins again if that cannot be.

    Args:
        run: The run's folder.
        train: Trains in it, and goes on with what is there.

    Raises:
        ValueError: What ``train`` raises where nothing had been begun.
    """
    begun = (run / "config.json").exists()
    try:
        train()
    except ValueError as error:
        if not begun:
            raise
        print(f"the run cannot be gone on with, and begins again: {error}")
        shutil.rmtree(run)
        train()
