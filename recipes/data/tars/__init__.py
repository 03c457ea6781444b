"""Reads image-text pairs from WebDataset tars."""
