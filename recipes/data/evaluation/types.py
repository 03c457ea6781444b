"""What every evaluation set gives: its classes, its kind of image and its splits."""

from collections.abc import Mapping
from dataclasses import dataclass

from recipes.data.studies import StudySplit, Task


@dataclass(frozen=True)
class EvaluationSet:
    """A labelled set.

    Attributes:
        name: Short name, used in results.
        task: What kind of target the labels are.
        classes: Names of the ``C`` classes, in the order of ``Study.labels``.
        modality: Kind of all its images, or ``None`` where it is not known.
        splits: ``"test"`` always; ``"train"`` and ``"val"`` where the set has them.
        prompts: Name of the prompt file that fits its classes, or ``None``.
        notes: What a reader of a result should know.
    """

    name: str
    task: Task
    classes: tuple[str, ...]
    modality: str | None
    splits: Mapping[str, StudySplit]
    prompts: str | None = None
    notes: tuple[str, ...] = ()
