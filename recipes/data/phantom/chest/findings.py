"""The table of visual patterns: what each looks like, and the two diagnoses that share its look.

A pattern is what an image can show. A diagnosis (a class of the data set) is a pattern together with
its cause, and the cause is told by the clinical note alone.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Pattern:
    """One visual pattern and its two possible diagnoses.

    Attributes:
        name: Name of the pattern, for readers of the code; it never reaches a note.
        texture: What sets its drawing apart.
        scale: Longer side of one lesion's box, smallest and largest, in units of the image's side.
        place: Where it may lie.
        diagnoses: Class names for cause 0 and cause 1.
    """

    name: str
    texture: str
    scale: tuple[float, float]
    place: str
    diagnoses: tuple[str, str]


PATTERNS: tuple[Pattern, ...] = (
    Pattern(
        name="consolidation",
        texture="mottled cloud, one straight edge, dark branching streaks",
        scale=(0.12, 0.30),
        place="upper or middle zone of one lung",
        diagnoses=("Pneumonia", "Pulmonary Hemorrhage"),
    ),
    Pattern(
        name="nodules",
        texture="small bright discs with a sharp edge",
        scale=(0.03, 0.06),
        place="scattered over both lungs",
        diagnoses=("Granuloma", "Metastasis"),
    ),
    Pattern(
        name="reticulation",
        texture="net of fine bright lines",
        scale=(0.30, 0.65),
        place="middle and lower zones of both lungs",
        diagnoses=("Pulmonary Fibrosis", "Interstitial Edema"),
    ),
    Pattern(
        name="basal fluid",
        texture="smooth and bright, upper edge rising to the side (meniscus)",
        scale=(0.16, 0.35),
        place="base of one or both lungs",
        diagnoses=("Transudative Effusion", "Empyema"),
    ),
    Pattern(
        name="pleural air",
        texture="dark rim without markings, bounded by a thin bright line",
        scale=(0.33, 0.64),
        place="apex and outer side of one lung",
        diagnoses=("Spontaneous Pneumothorax", "Traumatic Pneumothorax"),
    ),
)
"""The patterns, in the order of every ``visible`` and ``causes`` array."""

CLASSES: tuple[str, ...] = tuple(name for pattern in PATTERNS for name in pattern.diagnoses)
"""Class names: class ``2 * p + c`` is pattern ``p`` with cause ``c``."""


def labels_of(visible: NDArray[np.bool_], causes: NDArray[np.int64]) -> NDArray[np.float32]:
    """Turns latents into labels: class ``2p + c`` is 1 where pattern ``p`` is visible and its cause is ``c``.

    Args:
        visible: Shape ``(N, P)``, whether each pattern is drawn.
        causes: Shape ``(N, P)``, 0 or 1.

    Returns:
        Shape ``(N, 2P)``, 0 or 1.
    """
    pairs = np.stack([visible & (causes == 0), visible & (causes == 1)], axis=2)
    return pairs.reshape(len(visible), -1).astype(np.float32)
