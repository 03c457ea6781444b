"""Scores of predictions and of retrieval, their intervals, and how experts were used."""
