"""Drawn data sets: radiographs with notes whose best possible scores are known, and four modalities with reports."""

from recipes.data.phantom.chest.studies import PhantomSplit, phantom_source
from recipes.data.phantom.hard.studies import PhantomHardSplit, phantom_hard_source
from recipes.data.phantom.modalities import (
    PhantomModalitySplit,
    phantom_evaluation_sets,
    phantom_modalities_source,
    phantom_prompts,
    phantom_several_findings,
)

__all__ = [
    "PhantomHardSplit",
    "PhantomModalitySplit",
    "PhantomSplit",
    "phantom_evaluation_sets",
    "phantom_hard_source",
    "phantom_modalities_source",
    "phantom_prompts",
    "phantom_several_findings",
    "phantom_source",
]
