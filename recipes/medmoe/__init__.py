"""MedMoE: contrastive pretraining of images with reports, with one expert per kind of image.

Chopra et al. 2025, "MedMoE: Modality-specialized mixture of experts for medical vision-language understanding",
https://arxiv.org/abs/2506.08356. Deviations are listed in ``docs/papers.md``.

Each stage is a file; beside it stands what only it needs:

- pretrain: ``config``, ``sources``, ``tokens``, ``data``, ``build``, ``model``, ``objective``, ``routing``, ``summary``
- zero_shot: ``evaluation_sets``, ``prompt_files``, ``prompts/``, ``embedding``, ``local_scoring``, ``scoring``
- probe: ``features``, ``subsets``, ``linear``
- retrieve: ``embedding``
- explain: ``word_maps``, ``seen``, ``pointing``, ``pictures``
- flops: ``model``
- report: what the other stages wrote

All but pretrain, flops and report open a run through ``inference.Session``.
"""
