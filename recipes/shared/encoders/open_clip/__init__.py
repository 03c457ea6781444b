"""The two towers of a CLIP of open_clip as encoders of the recipes (extra ``openclip``).

A name is ``open_clip:ARCHITECTURE/TAG`` (``open_clip:ViT-B-32-quickgelu/openai``), ``open_clip:hf-hub:owner/name``, or
``open_clip:FOLDER`` with an ``open_clip_config.json`` and the weights beside it. ``whole`` builds a whole model,
``image`` and ``text`` take its towers.
"""
