"""All presets of the recipe by name: MedMoE itself and the baselines that it is compared with."""

from recipes.medmoe.baselines.presets import baseline_presets
from recipes.medmoe.config import paper, release, tiny

PRESETS = {"paper": paper, "release": release, "tiny": tiny} | baseline_presets()
