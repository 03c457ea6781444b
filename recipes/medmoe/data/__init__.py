"""Pairs, labelled sets and texts as the tensors that the model takes: ``batches``, ``labelled_sets``, ``tokens``."""
