"""Linear probing of frozen features. Start reading at ``stage``.

``evaluation`` probes one set; ``features`` computes and keeps what is probed, ``subsets`` draws parts of the training
split, ``linear`` fits the classifiers.
"""
