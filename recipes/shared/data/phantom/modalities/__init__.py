"""Four drawn modalities with reports and boxes: image-text pairs that need no download."""

from recipes.shared.data.phantom.modalities.evaluation import PhantomModalityPart, phantom_evaluation_sets
from recipes.shared.data.phantom.modalities.findings import FINDING_NAMES, FINDINGS, MODALITIES, Finding, findings_of
from recipes.shared.data.phantom.modalities.prompts import phantom_prompts
from recipes.shared.data.phantom.modalities.source import PhantomModalitySplit, phantom_modalities_source

__all__ = [
    "FINDINGS",
    "FINDING_NAMES",
    "MODALITIES",
    "Finding",
    "PhantomModalityPart",
    "PhantomModalitySplit",
    "findings_of",
    "phantom_evaluation_sets",
    "phantom_modalities_source",
    "phantom_prompts",
]
