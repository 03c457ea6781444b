"""Scores of predictions, their intervals, and how experts were used."""
