"""The stage ``report``: ``page`` puts it together, every other module prepares one section for its template."""

from recipes.medmoe.report.page import write_report

__all__ = ["write_report"]
