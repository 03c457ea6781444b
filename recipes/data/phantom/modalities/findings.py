"""The table of findings: three per modality, of clearly different scale, and where each may lie."""

from dataclasses import dataclass
from typing import NamedTuple

MODALITIES: tuple[str, ...] = ("xray", "ct", "ultrasound", "mri")
"""The drawn modalities, in the order of the findings."""

NORMAL = "normal"
"""Name of the state without a finding."""


class Place(NamedTuple):
    """Where a finding lies.

    Attributes:
        side: -1 for the image's left, 0 for its middle, +1 for its right.
        zone: Which of the finding's zones; the drawing of the finding gives it a meaning.
        words: How a report says it, from its preposition on.
    """

    side: int
    zone: int
    words: str


@dataclass(frozen=True)
class Finding:
    """One finding.

    Attributes:
        name: Name of its class and of its boxes.
        modality: On what kind of image it is seen.
        scale: Longer side of its box, smallest and largest, in units of the image's side. The box of an ultrasound
            finding holds its shadow, or the brighter tissue behind it, too.
        places: Where it may lie, each equally likely.
    """

    name: str
    modality: str
    scale: tuple[float, float]
    places: tuple[Place, ...]

    @property
    def words(self) -> tuple[str, ...]:
        """The words that name it in every report: what a word's map should point at, the telling one last."""
        return tuple(self.name.split())


def _sides(*zones: str, names: dict[int, str] | None = None) -> tuple[Place, ...]:
    """Lists every zone on every side; ``{side}`` in a zone becomes the side's name."""
    # The patient faces the reader: the right side is on the image's left.
    named = {-1: "right", 1: "left"} if names is None else names
    return tuple(
        Place(side, zone, words.format(side=name)) for zone, words in enumerate(zones) for side, name in named.items()
    )


_BREAST = _sides(
    "in the superficial {side} breast",
    "in the deep {side} breast",
    names={-1: "medial", 0: "central", 1: "lateral"},
)

FINDINGS: tuple[Finding, ...] = (
    Finding("pleural effusion", "xray", (0.20, 0.42), _sides("at the {side} lung base")),
    Finding("consolidation", "xray", (0.10, 0.28), _sides("in the {side} upper zone", "in the {side} middle zone")),
    Finding("lung nodule", "xray", (0.05, 0.12), _sides("in the {side} upper lobe", "in the {side} lower lobe")),
    Finding(
        "liver mass",
        "ct",
        (0.11, 0.28),
        (
            Place(-1, 0, "in the posterior right lobe"),
            Place(-1, 1, "in the anterior right lobe"),
            Place(1, 2, "in the left lobe"),
        ),
    ),
    Finding(
        "kidney cyst",
        "ct",
        (0.08, 0.18),
        _sides("on the anterior {side} side", "on the posterior {side} side"),
    ),
    Finding("kidney stone", "ct", (0.03, 0.08), _sides("on the anterior {side} side", "on the posterior {side} side")),
    Finding("simple cyst", "ultrasound", (0.20, 0.36), _BREAST),
    Finding("solid mass", "ultrasound", (0.20, 0.36), _BREAST),
    Finding("calcifications", "ultrasound", (0.08, 0.20), _BREAST),
    Finding("brain tumor", "mri", (0.16, 0.36), _sides("in the {side} frontal lobe", "in the {side} occipital lobe")),
    Finding(
        "infarct",
        "mri",
        (0.13, 0.34),
        _sides("in the {side} frontal lobe", "in the {side} parietal lobe", "in the {side} occipital lobe"),
    ),
    Finding(
        "plaque",
        "mri",
        (0.04, 0.10),
        _sides("beside the {side} frontal horn", "beside the {side} occipital horn", "in the {side} deep white matter"),
    ),
)
"""All findings, in the order of the labels: three of each modality, from large to small."""

FINDING_NAMES: tuple[str, ...] = tuple(finding.name for finding in FINDINGS)

PER_MODALITY = len(FINDINGS) // len(MODALITIES)


def findings_of(modality: str) -> tuple[Finding, ...]:
    """Returns the findings of one modality, from large to small.

    Raises:
        ValueError: If the modality is not drawn.
    """
    if modality not in MODALITIES:
        raise ValueError(f"modality: expected one of {', '.join(MODALITIES)}, got {modality!r}.")
    return tuple(finding for finding in FINDINGS if finding.modality == modality)
