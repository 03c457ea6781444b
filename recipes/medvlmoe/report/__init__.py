"""Stage 4: the report. ``page`` puts it together, every other module prepares one section for its template."""

from recipes.medvlmoe.report.page import write_report
from recipes.medvlmoe.report.seeds import write_seeds_report

__all__ = ["write_report", "write_seeds_report"]
