"""Sections of a free-text radiology report."""

import re

_HEADER = re.compile(r"(?:^|\n)[ ]*([A-Z][A-Z ()/,-]*):\s", re.ASCII)


def report_sections(report: str) -> dict[str, str]:
    """Splits a report at its headers: lines that begin with capitals and a colon, as MIMIC-CXR writes them.

    The last section of a name wins, as in MIMIC-CXR's public code. Text before the first header is kept
    under ``""``.

    Returns:
        Lower-case names and the text of each section, white space folded.
    """
    pieces = _HEADER.split(report)
    sections = {"": pieces[0]}
    sections.update(zip((name.strip().lower() for name in pieces[1::2]), pieces[2::2], strict=True))
    return {name: " ".join(text.split()) for name, text in sections.items() if text.strip()}


def section_of(report: str | None, name: str) -> str | None:
    """One section of a report, ``None`` where it has none. A name matches headers that contain it."""
    if report is None:
        return None
    wanted = name.strip().lower()
    found = [text for header, text in report_sections(report).items() if header and wanted in header]
    return found[-1] if found else None
