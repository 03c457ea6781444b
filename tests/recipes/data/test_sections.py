"""Sections of reports."""

from recipes.data.tables.sections import report_sections, section_of

REPORT = """                                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)

 INDICATION:  ___-year-old with cough // pneumonia?

 FINDINGS:  The lungs are
 clear. Heart: normal.

 IMPRESSION:  Old.

 IMPRESSION:  No acute process.
"""


def test_sections_are_found_and_folded():
    sections = report_sections(REPORT)
    assert sections["examination"] == "CHEST (PA AND LAT)"
    assert sections["indication"] == "___-year-old with cough // pneumonia?"
    assert sections["findings"] == "The lungs are clear. Heart: normal."


def test_the_last_section_of_a_name_wins():
    assert section_of(REPORT, "Impression") == "No acute process."


def test_a_name_matches_longer_headers():
    assert section_of("\n FINDINGS AND IMPRESSION: nothing\n", "impression") == "nothing"


def test_a_report_without_the_section_has_none():
    assert section_of(REPORT, "comparison") is None
    assert section_of(None, "findings") is None
    assert section_of("just words", "findings") is None
