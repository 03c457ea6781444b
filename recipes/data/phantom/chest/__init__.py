"""Drawn chest radiographs with clinical notes, whose best possible scores are known."""
