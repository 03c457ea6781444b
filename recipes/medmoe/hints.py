"""The command that may follow a stage."""

import shlex
from pathlib import Path

DRAWN = "phantom"
"""The setting ``--data`` of a run on drawn images, which bring labelled sets of their own."""
_ORDER = ("pretrain", "zero-shot", "retrieve", "probe", "explain", "report")
_NEED_LABELS = ("zero-shot", "probe")


def next_command(run: Path, after: str, *, data: str) -> str:
    """Returns a line with the command that may follow a stage and works as it stands.

    Zero-shot classification and probing without further options need the labelled sets of drawn data, so a run on
    other data passes over them.

    Args:
        run: Folder of the run.
        after: The stage that is done.
        data: The run's setting ``--data``.
    """
    following = _ORDER[_ORDER.index(after) + 1 :]
    stage = next(name for name in following if data == DRAWN or name not in _NEED_LABELS)
    return f"next: python -m recipes.medmoe {stage} {shlex.quote(str(run))}"
