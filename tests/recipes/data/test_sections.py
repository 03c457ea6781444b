"""Sections of reports."""

import pytest

from recipes.data.tables.sections import report_sections, section_of, sections_of

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


@pytest.mark.parametrize(
    "report",
    [
        "FINDINGS: clear lungs\nIMPRESSION: normal",
        "Findings: clear lungs\nImpression: normal",
        "findings: clear lungs\nimpression: normal",
        "  Findings:\n    clear\n    lungs\n  Impression:\n    normal",
        "FINDINGS:clear lungs\nIMPRESSION:normal",
        "FINDINGS\nclear lungs\n\nIMPRESSION\nnormal",
        "Findings\nclear lungs\nImpression\nnormal",
        "Findings - clear lungs\nImpression - normal",
        "FINDINGS – clear lungs\nIMPRESSION – normal",
        "**Findings:** clear lungs\n**Impression:** normal",
        "**Findings**: clear lungs\n**Impression**: normal",
        "__FINDINGS__\nclear lungs\n__IMPRESSION__\nnormal",
        "## Findings\n\nclear lungs\n\n## Impression\n\nnormal",
        "### Findings:\nclear lungs\n### Impression:\nnormal",
        "1. Findings: clear lungs\n2. Impression: normal",
        "1) FINDINGS\nclear lungs\n2) IMPRESSION\nnormal",
        "- Findings: clear lungs\n- Impression: normal",
        "Findings (preliminary): clear lungs\nImpression (final): normal",
        "\r\nFINDINGS: clear lungs\r\nIMPRESSION: normal\r\n",
        "FINDINGS\r\nclear lungs\r\nIMPRESSION\r\nnormal\r\n",
        "Findings\rclear lungs\rImpression\rnormal",
        "\xa0FINDINGS:\xa0clear lungs\n\xa0IMPRESSION:\xa0normal",
        "FINDINGS\n--------\nclear lungs\nIMPRESSION\n==========\nnormal",
        "Radiographic findings: clear lungs\nRadiological impression: normal",
        "INDICATION: cough FINDINGS: clear lungs IMPRESSION: normal",
        "Comparison: None Indication: cough Findings: clear lungs Impression: normal",
        "Indication: immigrant from Bangladesh Findings: clear lungs Impression: normal",
        "Indication: positive PPD Findings: clear lungs Impression: normal",
        "Indication: Cough. Findings: clear lungs Impression: x. Impression: normal",
    ],
)
def test_headers_are_read_in_the_forms_that_reports_have(report):
    assert section_of(report, "findings").removesuffix(" Impression: x.") == "clear lungs"
    assert section_of(report, "impression") == "normal"


@pytest.mark.parametrize("header", ["FINDINGS AND IMPRESSION", "Findings/Impression", "Findings & Impression"])
def test_one_header_may_name_two_sections(header):
    for name in ("findings", "impression"):
        assert section_of(f"History: cough\n{header}: clear", name) == "clear"


@pytest.mark.parametrize(
    "report",
    [
        "there are no\nfindings\nof note",
        "Other findings: none",
        "No change. Heart: normal",
        "Impression of a mass",
        "see IMPRESSIONS of it",
        "the findings - if any - are small",
        "Heart normal. Other Findings: none",
        "Incidental Findings: none",
    ],
)
def test_words_of_a_sentence_are_no_headers(report):
    assert report_sections(report) == {"": " ".join(report.split())}


def test_headings_of_organs_belong_to_their_section():
    report = "FINDINGS:\n LUNGS: clear\n HEART: normal\n IMPRESSION: ok"
    assert section_of(report, "findings") == "LUNGS: clear HEART: normal"
    assert section_of("Findings:\nLungs: clear\nHeart: normal\nImpression: ok", "findings") == (
        "Lungs: clear Heart: normal"
    )
    # What is asked for to keep findings out must not take them in.
    report = "INDICATION:\n CHEST, TWO VIEWS: clear\n IMPRESSION: ok"
    assert section_of(report, "indication") is None


def test_a_section_does_not_run_into_the_next_where_line_breaks_are_lost():
    report = "Comparison: None Indication: chest pain Findings: no effusion Impression: normal chest"
    assert report_sections(report) == {
        "comparison": "None",
        "indication": "chest pain",
        "findings": "no effusion",
        "impression": "normal chest",
    }
    assert (
        section_of("Findings: Chest Comparison: larger than before", "findings")
        == "Chest Comparison: larger than before"
    )


def test_a_section_needs_a_name():
    for name in ("", "  "):
        with pytest.raises(ValueError, match=rf"text_section must name a section, such as findings, got '{name}'"):
            sections_of([REPORT], name)


def test_any_name_that_is_asked_for_is_a_header():
    assert section_of("Hallazgos: limpio\nConclusion: ok", "hallazgos") == "limpio"
    assert section_of("Befund\nklar", "Befund") == "klar"
    assert section_of("Wet (prelim.) read: a+b", "wet (prelim.) read") == "a+b"


def test_some_texts_may_lack_the_section():
    texts = ["Findings: a", None, "Impression: b", "plain"]
    assert sections_of(texts, "findings") == ["a", None, None, None]
    assert sections_of(texts, "findings", whole_notes=True) == ["a", None, None, "plain"]
    assert sections_of([None, None], "findings") == [None, None]


def test_a_section_that_no_text_has_is_an_error_that_lists_the_headers():
    texts = ["Impression: a", "Impression: b", "History: c", None]
    message = (
        r"text_section 'findings': 0 of 3 texts have this section, so no text would be left. They have "
        r"'impression' \(2\), 'history' \(1\). Name one of these with text_section"
    )
    with pytest.raises(ValueError, match=message):
        sections_of(texts, "findings")
    with pytest.raises(ValueError, match=r"0 of 1 texts have this section.* They have no headers at all"):
        sections_of(["plain"], "findings")
    with pytest.raises(ValueError, match=r"0 of 3 texts.* Give texts that have it, or notes without any header\."):
        sections_of(texts, "findings", whole_notes=True)
