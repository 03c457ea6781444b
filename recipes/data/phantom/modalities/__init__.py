"""Four drawn modalities with reports and boxes: image-text pairs that need no download."""

from recipes.data.phantom.modalities.findings import FINDING_NAMES, FINDINGS, MODALITIES, Finding, findings_of
from recipes.data.phantom.modalities.labelled import PhantomModalityPart, phantom_evaluation_sets
from recipes.data.phantom.modalities.pairs import PhantomModalitySplit, phantom_modalities_source
from recipes.data.phantom.modalities.prompts import phantom_prompts
from recipes.data.phantom.modalities.several import phantom_several_findings

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
    "phantom_several_findings",
]
