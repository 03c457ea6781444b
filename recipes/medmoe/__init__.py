"""MedMoE: contrastive pretraining of images with reports, with one expert per kind of image.

Chopra et al. 2025, "MedMoE: Modality-specialized mixture of experts for medical vision-language understanding",
https://arxiv.org/abs/2506.08356. Deviations are listed in ``docs/papers.md``.
"""
