"""Opens what a command is given: a pretrained run, or a folder for the results of a released model."""

from collections.abc import Iterable
from pathlib import Path

from recipes.medmoe.inference.released import ReleasedSession
from recipes.medmoe.inference.run import Session
from recipes.medmoe.inference.session import ModelSession
from recipes.medmoe.models.choice import ModelChoice
from recipes.shared.outputs import check_folder, check_outputs
from recipes.shared.runs import read_object, write_json

NOTE = "model.json"
"""What the folder of a released model's results keeps of it."""


def open_session(
    run: Path, checkpoint: str, choice: ModelChoice, *, writes: Iterable[str] = ("metrics.json",)
) -> ModelSession:
    """Checks that results can be written, and loads what makes them.

    Args:
        run: Folder of a pretrained run, or of the results of a released model; the latter is made if ``choice`` names
            one.
        checkpoint: Which weights of a run.
        choice: The command line's. Without a model, what the folder's ``model.json`` says.
        writes: Files or folders that the command writes into ``run``.

    Returns:
        A :class:`Session` of a run, else a :class:`ReleasedSession`.

    Raises:
        ValueError: If the folder is neither, belongs to another model, or cannot be written to.
        RuntimeError: If something that a hub has cannot be loaded.
    """
    if choice.model is None and not (run / NOTE).is_file():
        given = {"--text-tower": choice.text_tower, "--tokenizer": choice.tokenizer, "--data-of": choice.data_of}
        lost = [option for option, value in given.items() if value is not None]
        if lost:
            raise ValueError(f"{', '.join(lost)} belong to --model, which was not given.")
        check_outputs(run, writes)
        return Session.open(run, checkpoint)
    if choice.model is not None and (run / "config.json").is_file():
        raise ValueError(
            f"{run} holds a pretrained run, whose results those of {choice.model} would replace: give --model a "
            "folder of its own."
        )
    if (run / NOTE).is_file():
        choice = _same_as(run, choice)
    check_folder(run, "folder for the results")
    check_outputs(run, writes)
    session = ReleasedSession.open(run, choice)
    write_json(run / NOTE, choice.to_json())
    return session


def _same_as(run: Path, choice: ModelChoice) -> ModelChoice:
    """Returns the choice that a folder was made with, with what the command adds to it."""
    kept = read_object(run / NOTE, ("model",))
    given = {name: value for name, value in choice.to_json().items() if value is not None}
    if any(kept.get(name) not in (None, given[name]) for name in ("model", "text_tower", "tokenizer") if name in given):
        raise ValueError(
            f"{run} holds results of {kept['model']}, made with other options: give {given.get('model', 'this')} a "
            "folder of its own."
        )
    return ModelChoice.from_json({**kept, **given})
