"""Pairs, labelled sets and texts as the model takes them."""
