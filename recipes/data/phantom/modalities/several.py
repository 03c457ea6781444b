"""Drawn studies with several findings, which the phantom set does not have: there the words of a report must choose."""

from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from recipes.data.phantom.arguments import check_sizes, check_split, patient_names
from recipes.data.phantom.modalities.drawing import Picture, Streams
from recipes.data.phantom.modalities.findings import FINDINGS, MODALITIES, Finding, Place, findings_of
from recipes.data.phantom.modalities.pairs import DRAWERS, MIN_SIZE
from recipes.data.phantom.modalities.wording import SENTENCES, TECHNIQUES
from recipes.data.phantom.streams import Purpose, draw_patients, stream
from recipes.data.studies import Box, Study

_THREE = 0.25
"""Share of the studies that have all three findings of their modality; the others have two."""
_ATTEMPTS = 50
"""How often places are drawn until no two findings overlap."""

Shown = list[tuple[Finding, Place]]


@dataclass(frozen=True)
class ListedPairs:
    """A split of studies that are kept in memory."""

    studies: tuple[Study, ...]

    @property
    def ids(self) -> tuple[str, ...]:
        """Returns the id of each study."""
        return tuple(study.id for study in self.studies)

    @property
    def texts(self) -> tuple[str | None, ...]:
        """Returns the report of each study."""
        return tuple(study.text for study in self.studies)

    @property
    def groups(self) -> tuple[str, ...]:
        """Returns the patient of each study."""
        return tuple(study.group for study in self.studies)

    @property
    def modalities(self) -> tuple[str | None, ...]:
        """Returns the modality of each study."""
        return tuple(study.modality for study in self.studies)

    @property
    def labels(self) -> NDArray[np.float32]:
        """Returns which findings each study shows, shape ``(N, 12)``."""
        return np.stack([study.labels for study in self.studies])

    def __len__(self) -> int:
        """Returns the number of studies."""
        return len(self.studies)

    def __getitem__(self, index: int) -> Study:
        """Returns a study."""
        return self.studies[index]


def phantom_several_findings(*, seed: int = 0, split: str = "test", count: int = 240, size: int = 96) -> ListedPairs:
    """Draws studies of two or three findings of one modality, with one box each and a report that names all of them.

    Patients and everything but the findings are drawn as in the phantom set. A picture is that without a finding, plus
    what each finding alone changes in it; boxes of a study do not overlap, so this is what drawing them together gives.

    Args:
        seed: Names the data set.
        split: ``"train"``, ``"val"`` or ``"test"``.
        count: Number of studies.
        size: Side of the square images in pixels, at least 64.

    Raises:
        ValueError: If an argument is not a whole number, is too small, or the split is unknown.
    """
    check_sizes(smallest_side=MIN_SIZE, seed=seed, size=size, count=count)
    check_split(split)
    patients = draw_patients(seed, split, count, Purpose.PAIR_GROUPS)
    kinds = stream(seed, split, Purpose.PAIR_MODALITY).integers(len(MODALITIES), size=count)[patients]
    names = patient_names(split, patients)
    return ListedPairs(
        tuple(
            _study(seed, split, index, int(patients[index]), names[index], MODALITIES[kinds[index]], size)
            for index in range(count)
        )
    )


def _study(seed: int, split: str, index: int, patient: int, group: str, modality: str, size: int) -> Study:
    rng = stream(seed, split, Purpose.PAIR_SEVERAL, index)
    number = 3 if rng.random() < _THREE else 2
    chosen = [findings_of(modality)[place] for place in rng.permutation(3)[:number]]

    def draw(name: str | None, place: Place | None, *lesion: int) -> Picture:
        streams = Streams(
            patient=stream(seed, split, Purpose.PAIR_ANATOMY, patient),
            acquisition=stream(seed, split, Purpose.PAIR_ACQUISITION, index),
            lesion=stream(seed, split, Purpose.PAIR_SEVERAL, index, *lesion),
        )
        return DRAWERS[modality](name, place, streams, size)

    for attempt in range(_ATTEMPTS):
        shown: Shown = [(one, one.places[rng.integers(len(one.places))]) for one in chosen]
        pictures = [draw(one.name, place, attempt, which) for which, (one, place) in enumerate(shown)]
        boxes = tuple(
            Box(one.name, *picture.box) for (one, _), picture in zip(shown, pictures, strict=True) if picture.box
        )
        if len(boxes) == number and not any(_overlap(a, b) for a, b in combinations(boxes, 2)):
            break
    else:
        raise RuntimeError(f"no places of {[one.name for one in chosen]} without overlap in {_ATTEMPTS} attempts.")
    plain = draw(None, None, 0, 0).image.astype(np.int16)
    image = plain + sum(picture.image.astype(np.int16) - plain for picture in pictures)
    return Study(
        id=f"{split}-several-{index:05d}",
        group=group,
        image=np.clip(image, 0, 255).astype(np.uint8),
        text=_report(modality, shown, rng),
        labels=np.array([finding in chosen for finding in FINDINGS], dtype=np.float32),
        boxes=boxes,
        modality=modality,
    )


def _overlap(a: Box, b: Box) -> bool:
    return a.x0 < b.x1 and b.x0 < a.x1 and a.y0 < b.y1 and b.y0 < a.y1


def _report(modality: str, shown: Shown, rng: np.random.Generator) -> str:
    """Writes a sentence for each finding and, of two findings, an aside."""
    parts = [SENTENCES[one.name][rng.integers(len(SENTENCES[one.name]))].format(place=at.words) for one, at in shown]
    if len(parts) < 3:
        parts.append(TECHNIQUES[modality][rng.integers(len(TECHNIQUES[modality]))])
    return " ".join(parts)
