"""The models that the paper's Table 1 compares with, and two more objectives, as presets of the same commands."""

BASELINES = ("convirt", "biovil", "gloria", "clip-med", "biobert-vqa", "chexzero", "medclip")
"""Presets at the published scale: the five rows of the paper's Table 1, then CheXzero and MedCLIP."""

TINY_BASELINES = tuple(f"{name}-tiny" for name in BASELINES)
"""The same objectives and heads with small encoders from scratch, for a CPU; ``tiny`` is MedVLMoE itself."""
