"""A pretrained run, loaded: ``run.Session`` encodes, and the other modules embed, score locally and route a split."""
