"""Few-shot classification of frozen embeddings. Start reading at ``stage``.

``evaluation`` scores one set, ``methods`` are the classifiers, ``shots`` draws the labelled images.
"""
