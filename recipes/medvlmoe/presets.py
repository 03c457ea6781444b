"""All presets of the recipe by name: MedVLMoE itself and the baselines that it is compared with."""

from recipes.medvlmoe.baselines.presets import baseline_presets
from recipes.medvlmoe.config import paper, tiny

PRESETS = {"paper": paper, "tiny": tiny} | baseline_presets()
