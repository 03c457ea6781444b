"""Released models beside MedMoE, on the same sets, prompts and scores (``--model``).

``adapter`` is the protocol: one small class per release turns its files into an image encoder and a text encoder of
one space. ``choice`` holds the command line's options, ``load`` finds the adapter of a name, ``preprocess`` turns
images into what a release was trained on. Layouts that a release's own code defines are cited in the module of its
adapter; none of that code is here.

| name | module | read by |
|---|---|---|
| ``open_clip:`` (CLIP, BiomedCLIP, QuiltNet) | ``open_clip`` | open_clip |
| ``transformers:`` (CLIP, PubMedCLIP) | ``transformers_clip`` | transformers |
| ``unimed:`` | ``unimed`` | open_clip, under its fork's names |
| ``gloria:``, ``medclip:``, ``keepfit:``, ``biovil:`` | of the same names | this package |
| ``pmc-clip:`` | ``pmc_clip`` | this package, the image tower by open_clip |

Shared by them: ``checkpoints`` (files without their objects, loaded name by name), ``resnet`` and ``bert``.
"""
