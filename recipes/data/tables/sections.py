"""Sections of a free-text radiology report."""

import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

from recipes.data.arguments import argument

_NAMES = (
    r"addend(?:um|a)|(?:clinical )?(?:history|information|indications?|data|details|context|question)|comments?"
    r"|comparisons?|conclusions?|(?:final )?(?:diagnos[ie]s|report)|discussion|exam(?:ination)?s?"
    r"|(?:final |imaging |radiographic |radiolog(?:y|ic|ical) )?(?:findings?|impressions?)|interpretation"
    r"|notifications?|opinion|past medical history|procedures?|reason for (?:the )?"
    r"(?:exam(?:ination)?|study|test|visit)|recommendations?|study|summary|techniques?|type of exam(?:ination)?|views?"
    r"|wet read"
)
"""Names of sections that are headers in any case."""

_DIVIDED = re.compile(r"finding|impression|conclusion|report", re.IGNORECASE)
"""Sections whose text may stand under headings of its own, such as the organs."""

_BULLET = r"(?:\#{1,6}[ \t]*|\d{1,2}[.)][ \t]*|[-*•][ \t]+)?(?:\*\*|__|\*|_)?"
_CLOSING = r"(?:\*\*|__|\*|_)?"
_UNDERLINE = re.compile(r"\s*([-=*~])\1{2,}\s*")


@lru_cache(maxsize=64)
def _headers(name: str) -> re.Pattern[str]:
    """Matches headers; the group ``known`` holds those of a name above or of ``name``, ``capitals`` any others."""
    one = rf"(?:{_NAMES}|{re.escape(name)})" if name else rf"(?:{_NAMES})"
    known = rf"{one}(?:[ ]?(?:,|/|&|\+|\band\b)[ ]?{one})*(?:[ ]?\([^()\n]{{0,40}}\))?"
    return re.compile(
        # On a line of its own or at the beginning of one: `Findings:`, `**Findings**:`, `1. FINDINGS -`, `## Findings`
        rf"(?:^[ \t]*{_BULLET}(?:"
        rf"(?P<line>(?i:{known}))(?:{_CLOSING}[ \t]*:{_CLOSING})"
        rf"|(?=[A-Z])(?P<bare>(?i:{known}))(?:{_CLOSING}(?:[ \t]*$|[ \t]*[-–—]{{1,2}}[ \t]))"
        rf"|(?P<capitals>[A-Z][A-Z ()/,-]*):(?=\s|$)"
        # Within a line, where line breaks were folded: behind a sentence, in capitals behind other words, or with a
        # capital behind a word that begins no sentence (`cough Findings:`, not `Heart normal. Other Findings:`)
        rf")|(?<=[.?!;)])[ \t]+(?=[A-Z])(?P<sentence>(?i:{known})):(?=\s)"
        rf"|(?<=[^A-Z\s,/&])[ \t]+(?=[A-Z][A-Z ()/,&+-]*:\s)(?P<inline>(?i:{known})):"
        rf"|(?:(?<!\S)(?:[a-z][a-z-]*|None)|(?<=[,a-z0-9][ ])[A-Z][A-Za-z-]*)[ \t]+"
        rf"(?=[A-Z][a-z])(?P<folded>(?i:{known})):(?=\s))",
        re.MULTILINE | re.ASCII,
    )


def report_sections(report: str, name: str = "") -> dict[str, str]:
    r"""Splits a report at its headers.

    A header begins a line and ends with a colon, a dash or the line, whatever its case, numbering or markdown
    (``Findings:``, ``IMPRESSION -``, ``**Indication**:``, ``2. COMPARISON:``, ``## Technique``), if its name is one
    that sections commonly have, or ``name``. Any other words are a header only in capitals and with a colon, as
    MIMIC-CXR writes them; below findings, impression and conclusion they may head a part of that section
    (``FINDINGS:\n LUNGS: clear``). Lines that underline a header are left out. Where line breaks are lost, headers with
    a colon are seen within the line.

    The last section of a name wins, as in MIMIC-CXR's public code. Text before the first header is kept under ``""``.

    Args:
        report: The report.
        name: A further name to look for.

    Returns:
        Lower-case names and the text of each section, white space folded.
    """
    report = _with_plain_lines(report)
    matches = list(_headers(name.strip().lower()).finditer(report))
    starts = [*map(_start, matches), len(report)]
    sections = {"": report[: starts[0]]}
    divided: str | None = None
    for match, end in zip(matches, starts[1:], strict=True):
        title = " ".join(next(group for group in match.groups() if group).lower().split())
        text = report[match.end() : end]
        if match["capitals"] and divided is not None:
            sections[divided] += f" {match['capitals']}: {text}"
            continue
        sections[title] = text
        divided = title if not match["capitals"] and not text.strip() and _DIVIDED.search(title) else None
    return {title: " ".join(text.split()) for title, text in sections.items() if text.strip()}


LAST_PARAGRAPH = "last_paragraph"
"""Name of what stands behind the last blank line of a report, as in MIMIC-CXR's public code."""


def section_of(report: str | None, name: str) -> str | None:
    """Returns one section of a report, ``None`` where it has none. A name matches headers that contain it.

    Args:
        report: The report.
        name: Of the section. Several, joined by commas, are fallbacks: the first that the report has is returned.
            ``last_paragraph`` is what stands behind the last blank line, or the whole text without one, and without
            its header.

    Raises:
        ValueError: If a name is blank.
    """
    names = [part.strip().lower() for part in name.split(",")]
    if not all(names):
        raise ValueError(f"{argument('text_section')} must name a section, such as findings, got {name!r}")
    if report is None:
        return None
    return next((text for one in names if (text := _one_section(report, one)) is not None), None)


def _one_section(report: str, asked: str) -> str | None:
    if asked == LAST_PARAGRAPH:
        report = re.split(r"\n[ \t]*\n", _with_plain_lines(report).strip())[-1]
        return next(reversed(report_sections(report).values()), None)
    texts = [text for title, text in report_sections(report, asked).items() if title and asked in title]
    return texts[-1] if texts else None


def sections_of(texts: Sequence[str | None], name: str, *, whole_notes: bool = False) -> list[str | None]:
    """Returns one section of each text, ``None`` where there is none.

    Args:
        texts: Reports, ``None`` where a study has none.
        name: Of the section, or fallbacks joined by commas as in `section_of`.
        whole_notes: Whether a text without any header is taken whole.

    Raises:
        ValueError: If the name is blank, or there are texts, but none has the section; the message lists the headers
            that they have.
    """

    def chosen(text: str | None) -> str | None:
        if text is not None and whole_notes and not _has_header(text, name):
            return text
        return section_of(text, name)

    sections = [chosen(text) for text in texts]
    reports = [text for text in texts if text is not None]
    if reports and not any(sections):
        headers = Counter(title for report in reports for title in report_sections(report, name) if title)
        listed = ", ".join(f"{title!r} ({count})" for title, count in headers.most_common(8)) or "no headers at all"
        if whole_notes:
            which, how = "section", "Give texts that have it, or notes without any header."
        else:
            which = argument("text_section")
            how = f"Name one of these with {argument('text_section')}, or leave it out to use whole texts."
        raise ValueError(
            f"{which} {name!r}: 0 of {len(reports)} texts have this section, so no text would be left. They have "
            f"{listed}. {how}"
        )
    return sections


def _has_header(report: str, name: str) -> bool:
    plain = _with_plain_lines(report)
    return any(_headers(part.strip().lower()).search(plain) for part in name.split(","))


def _with_plain_lines(report: str) -> str:
    r"""Returns a report with ``\n`` after each line, whatever ended it, plain spaces, and no lines that underline."""
    return "\n".join(line for line in report.replace("\xa0", " ").splitlines() if not _UNDERLINE.fullmatch(line))


def _start(match: re.Match[str]) -> int:
    """Returns where a header begins; what matches before a folded one is the last word of the text before it."""
    return match.start("folded") if match["folded"] else match.start()
