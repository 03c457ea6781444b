"""The phantom modalities as labelled sets, one per modality, for zero-shot classification and probing."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from recipes.data.evaluation.types import EvaluationSet
from recipes.data.pairs import PairSource
from recipes.data.phantom.arguments import checked_index
from recipes.data.phantom.modalities.findings import FINDING_NAMES, MODALITIES, NORMAL, findings_of
from recipes.data.phantom.modalities.pairs import PhantomModalitySplit
from recipes.data.studies import Study


class PhantomModalityPart:
    """The studies of one modality of a split, labelled with its findings and ``"normal"``.

    Attributes:
        ids: Id of each study.
        texts: Report of each study.
        groups: Patient of each study.
        labels: Shape ``(N, 4)``, one-hot: the three findings, then normal.
    """

    def __init__(self, split: PhantomModalitySplit, modality: str) -> None:
        """Picks the studies of ``modality``, in their order.

        Raises:
            ValueError: If the modality is not drawn.
        """
        columns = [FINDING_NAMES.index(finding.name) for finding in findings_of(modality)]
        self._split = split
        self._rows: NDArray[np.int64] = np.flatnonzero(np.asarray(split.modalities) == modality)
        findings = split.labels[self._rows][:, columns]
        self.labels: NDArray[np.float32] = np.hstack([findings, 1.0 - findings.sum(axis=1, keepdims=True)])
        self.ids: Sequence[str] = tuple(split.ids[row] for row in self._rows)
        self.texts: Sequence[str] = tuple(split.texts[row] for row in self._rows)
        self.groups: Sequence[str] = tuple(split.groups[row] for row in self._rows)

    def __len__(self) -> int:
        """Returns the number of studies."""
        return len(self.ids)

    def __getitem__(self, index: int) -> Study:
        """Draws a study; the same index always gives the same bits."""
        index = checked_index(index, len(self))
        return replace(self._split[int(self._rows[index])], labels=self.labels[index].copy())


def phantom_evaluation_sets(source: PairSource) -> list[EvaluationSet]:
    """Returns one labelled set per drawn modality: its three findings and ``"normal"``.

    Args:
        source: What `phantom_modalities_source` returned.

    Returns:
        Sets named ``phantom-xray``, ``phantom-ct``, ``phantom-ultrasound`` and ``phantom-mri``, each with the splits of
        ``source``; `phantom_prompts` gives their prompts.

    Raises:
        ValueError: If a split of ``source`` was not drawn by `phantom_modalities_source`.
    """
    splits: dict[str, PhantomModalitySplit] = {}
    for name in ("train", "val", "test"):
        split = getattr(source, name)
        if not isinstance(split, PhantomModalitySplit):
            raise ValueError(
                f"source: expected one of phantom_modalities_source, got {source.name!r} whose {name} split is a "
                f"{type(split).__name__}. Give a manifest or a labelled folder for other data."
            )
        splits[name] = split
    return [
        EvaluationSet(
            name=f"phantom-{modality}",
            task="multi-class",
            classes=(*(finding.name for finding in findings_of(modality)), NORMAL),
            modality=modality,
            splits={name: PhantomModalityPart(split, modality) for name, split in splits.items()},
            prompts=f"phantom-{modality}",
            notes=source.notes,
        )
        for modality in MODALITIES
    ]
