"""Texts made of class names: prompts of zero-shot classes, and texts of training studies that came with none."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from recipes.data.studies import Task
from recipes.medvlmoe.baselines.config import ContrastConfig


def class_prompts(classes: Sequence[str], task: Task, contrast: ContrastConfig) -> list[str]:
    """Returns the texts with which a zero-shot classifier compares an image.

    Args:
        classes: Names of the ``C`` classes.
        task: Of a multi-label task there are two texts for each class.
        contrast: ``prompt`` and ``absent``.

    Returns:
        ``C`` texts that name the classes; of a multi-label task ``C`` more that deny them.
    """
    named = [contrast.prompt.format(name) for name in classes]
    if task != "multi-label":
        return named
    return named + [contrast.prompt.format(contrast.absent.format(name)) for name in classes]


def texts_of_labels(
    labels: NDArray[np.float32], classes: Sequence[str], task: Task, contrast: ContrastConfig
) -> list[str | None]:
    """Writes a text of each study's labels.

    A text of a multi-label task states every known label ("a medical image of edema, no effusion"); of other tasks it
    names the class.

    Args:
        labels: ``(N, C)``: 1, 0 or NaN.
        classes: Names of the ``C`` classes.
        task: Kind of the target.
        contrast: ``prompt`` and ``absent``.

    Returns:
        ``N`` texts; ``None`` for a study without a known label.
    """
    texts: list[str | None] = []
    for row in labels:
        if task == "multi-label":
            parts = [
                name if value == 1 else contrast.absent.format(name)
                for name, value in zip(classes, row, strict=True)
                if not np.isnan(value)
            ]
        else:
            parts = [] if np.isnan(row).any() else [classes[int(row.argmax())]]
        texts.append(contrast.prompt.format(", ".join(parts)) if parts else None)
    return texts


def check_prompt(name: str, option: str, prompt: str) -> None:
    """Refuses a pattern that does not have exactly one place for a class name.

    Args:
        name: Of the setting.
        option: Its option on the command line.
        prompt: The pattern.

    Raises:
        ValueError: Naming the setting.
    """
    if prompt.count("{}") != 1 or prompt.count("{") != 1 or prompt.count("}") != 1:
        raise ValueError(
            f"{name} ({option}) must hold {{}} once, where the class is named, as in 'a radiograph of {{}}', "
            f"got {prompt!r}."
        )
