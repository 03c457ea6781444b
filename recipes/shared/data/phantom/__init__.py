"""Drawn data sets: radiographs with notes whose best possible scores are known, and four modalities with reports."""

from recipes.shared.data.phantom.modalities import (
    PhantomModalitySplit,
    phantom_evaluation_sets,
    phantom_modalities_source,
    phantom_prompts,
)
from recipes.shared.data.phantom.source import PhantomSplit, phantom_source

__all__ = [
    "PhantomModalitySplit",
    "PhantomSplit",
    "phantom_evaluation_sets",
    "phantom_modalities_source",
    "phantom_prompts",
    "phantom_source",
]
