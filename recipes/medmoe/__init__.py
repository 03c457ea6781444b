"""MedMoE: contrastive pretraining of images with reports, with one expert per kind of image.

Chopra et al. 2025, "MedMoE: Modality-specialized mixture of experts for medical vision-language understanding",
https://arxiv.org/abs/2506.08356. Deviations are listed in ``docs/papers.md``.

The model is ``model`` (its router by known modality: ``label_router``), its settings are ``config``; ``build`` makes a
model from settings or from a run's folder. A stage of the command line is a folder whose ``stage`` holds ``main``; the
other modules of the folder serve that stage alone. A stage of one module is that module.

| stage | what it writes into the run's folder |
|---|---|
| ``pretrain`` | checkpoints, ``history.jsonl``, ``training.json``; facts and routing into ``metrics.json`` |
| ``zero_shot`` | ``zero_shot/SET.json``: labelled sets classified by the texts of their classes |
| ``probe`` | ``probe/SET.json``: linear classifiers on frozen features |
| ``retrieve`` | the section ``retrieval`` of ``metrics.json`` |
| ``explain`` | ``explain/``: word maps, scale weights, experts; the pointing game into ``metrics.json`` |
| ``flops`` | nothing of a run: it counts parameters and operations (``table3``: beside the baselines) |
| ``few_shot`` | ``few_shot/SET.json``: classifiers of a few labelled images |
| ``segment`` | the section ``segmentation`` of ``metrics.json``; ``segment/``: regions of images of one's own |
| ``tables`` | folders of their own: ``table1``, ``table2``, ``figure3``, sweeps over models, sets and seeds |
| ``report`` | ``report.html``, from what the other stages wrote |
| ``use.classify``, ``use.embed``, ``use.search`` | nothing of a run: tables and indices of images of one's own |

Shared by the stages: ``data`` (batches of pairs, labelled sets, tokens) and ``inference`` (``Session``: a pretrained
run that embeds images and texts; ``ReleasedSession``: one of ``models``, which adapts released models). ``baselines``
are presets of ``pretrain`` with other objectives.
"""
