"""Zero-shot classification. Start reading at ``stage``.

``evaluation`` classifies one split of one set, ``scoring`` turns embeddings into scores, ``prompt_files`` reads the
texts of the classes (``prompts/``).
"""
