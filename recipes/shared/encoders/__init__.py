"""Image and text encoders, from a hub, a local folder or from scratch.

``image`` and ``pyramid`` make patch tokens and maps of several scales from timm models, which ``timm_models`` builds
and ``weights`` loads (``medclip``: from another layout); ``text`` wraps transformers models; ``spec`` is what a run's
folder keeps of an image encoder.
"""
