"""How epochs are numbered in the files of a run: from 1.

Earlier versions numbered them from 0. What they wrote is brought to the present form where it is read, so that neither
a resumed run nor a report mixes the two.
"""

from collections.abc import Mapping, Sequence
from typing import Any

FIRST_EPOCH = {"first_epoch": 1}
"""What objects with a ``best_epoch`` hold besides; those of earlier versions lack it."""


def history_from_one(history: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns the records of ``history.jsonl`` with epochs numbered from 1, as which file or checkpoint they may be.

    Args:
        history: From the first epoch on; its number says how they are numbered.
    """
    shift = 1 if history and history[0]["epoch"] == 0 else 0
    return [{**record, "epoch": record["epoch"] + shift} for record in history]


def training_from_one(training: Mapping[str, Any]) -> dict[str, Any]:
    """Returns ``training.json``, or the section ``training`` of ``metrics.json``, with ``best_epoch`` numbered from 1.

    Args:
        training: As it was read; empty where nothing is known.
    """
    if "first_epoch" in training or training.get("best_epoch") is None:
        return dict(training)
    return {**training, "best_epoch": training["best_epoch"] + 1, **FIRST_EPOCH}
