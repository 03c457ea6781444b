"""What every sweep is told, and what it refuses before anything runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from recipes.shared.outputs import check_folder

DECIDED = {
    "out": "the table's --out is the folder of all runs",
    "seeds": "give --seeds to the table",
    "resume": "a table goes on with what its folder holds",
    "no-resume": "a table goes on with what its folder holds; --redo runs cells again",
    "preset": "--size and --models choose presets",
}
"""Options of the training command that a table sets itself, and what to do instead."""


@dataclass(frozen=True, kw_only=True)
class SweepOptions:
    """A sweep over models and seeds.

    Attributes:
        out: Folder of the table and all of its runs.
        seeds: One training each.
        workers: Cells at a time.
        redo: Patterns of the names of finished cells to run again.
        collect: Whether to run nothing, and make the table of what is finished.
        bootstrap: Resamples of patients.
        train: Options of the training command for all models.
    """

    out: Path
    seeds: tuple[int, ...] = (0, 1, 2)
    workers: int = 1
    redo: tuple[str, ...] = ()
    collect: bool = False
    bootstrap: int = 1000
    train: tuple[str, ...] = ()


def check_sweep(options: SweepOptions) -> None:
    """Refuses options that contradict each other, and a folder that cannot be written to.

    Args:
        options: Of the sweep.

    Raises:
        ValueError: Naming them.
    """
    if not options.seeds or len(set(options.seeds)) < len(options.seeds):
        raise ValueError(f"seeds (--seeds) must be different numbers, at least one, got {options.seeds}.")
    if options.collect and options.redo:
        raise ValueError("--collect runs nothing, and --redo runs cells again: give one of them.")
    if options.bootstrap < 100:
        raise ValueError(
            f"bootstrap (--bootstrap) must be at least 100 resamples, got {options.bootstrap}: paired differences need "
            "them."
        )
    check_folder(options.out, "--out")


def refuse_decided(given: Sequence[str], decided: Mapping[str, str], what: str, *, allowed: Sequence[str] = ()) -> None:
    """Refuses options that a table sets itself.

    Args:
        given: Options as on a command line.
        decided: Names of those, with dashes, and what to do instead.
        what: What the options are, for the message, such as ``"options of train behind --"``.
        allowed: Names that may be given all the same.

    Raises:
        ValueError: Naming the first.
    """
    for option in given:
        name = option.partition("=")[0].removeprefix("--").replace("_", "-")
        if option.startswith("--") and name in decided and name not in allowed:
            raise ValueError(f"--{name} cannot be among the {what}: {decided[name]}.")


def refuse_unread(unread: Sequence[frozenset[str]], where: str = "") -> None:
    """Refuses options that no model of a table reads.

    Args:
        unread: Of each model, the options that it does not read.
        where: Which models, for the message, such as ``" on breastmnist"``.

    Raises:
        ValueError: Naming them.
    """
    by_none = sorted(unread[0].intersection(*unread)) if unread else []
    if by_none:
        raise ValueError(f"{', '.join(by_none)}: no model of the table reads this{where}. Leave it out.")


def check_models(models: Sequence[str], known: Sequence[str], compared_with: str) -> None:
    """Refuses models that a table does not know.

    Args:
        models: Their names.
        known: Those that it knows.
        compared_with: The one that must be there.

    Raises:
        ValueError: If one is unknown or repeats, or that one is left out.
    """
    unknown = [name for name in models if name not in known]
    if unknown or len(set(models)) < len(models):
        raise ValueError(f"models (--models) must be different ones of {', '.join(known)}, got {', '.join(models)}.")
    if compared_with not in models:
        raise ValueError(f"models (--models) must hold {compared_with}, which the others are compared with.")
