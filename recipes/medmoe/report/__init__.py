"""Stage 7: the report. ``page`` puts it together, every other file draws one section."""

from recipes.medmoe.report.page import write_report

__all__ = ["write_report"]
