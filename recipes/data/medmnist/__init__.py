"""Reads MedMNIST's files."""
