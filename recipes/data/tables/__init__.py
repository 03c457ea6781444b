"""Reads tables (csv files): studies with labels, and pairs of images and texts."""
