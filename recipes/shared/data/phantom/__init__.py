"""Drawn chest radiographs with clinical notes: a data set whose best possible scores are known."""

from recipes.shared.data.phantom.source import PhantomSplit, phantom_source

__all__ = ["PhantomSplit", "phantom_source"]
