"""Other objectives on the same encoders, data and trainer, as presets of ``pretrain``: what the experts buy is a sweep.

| preset | what is contrasted | after |
|---|---|---|
| ``clip`` | whole images and texts, a trained scale | CLIP, https://arxiv.org/abs/2103.00020 |
| ``convirt`` | the same, by nonlinear projections, directions 3 to 1 | ConVIRT, https://arxiv.org/abs/2010.00747 |
| ``medclip`` | the same, matched by findings | MedCLIP, https://aclanthology.org/2022.emnlp-main.256 |
| ``gloria`` | whole images and texts; words and regions of one map | GLoRIA, doi.org/10.1109/ICCV48922.2021.00391 |
| ``one-expert`` | as MedMoE, but one expert takes all images | |
"""

BASELINES = ("clip", "convirt", "medclip", "gloria", "one-expert")
"""Presets with the encoders and the training of ``release``."""

TINY_BASELINES = tuple(f"{name}-tiny" for name in BASELINES)
"""The same objectives with the small encoders and the training of ``tiny``, for a CPU."""
