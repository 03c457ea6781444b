import pytest

from recipes.shared.report.formats import decimals, duration, fact, interval_text, percent


@pytest.mark.parametrize(("seconds", "text"), [(4.25, "4.2 s"), (75, "1 min 15 s"), (7500, "2 h 5 min")])
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_facts_in_words():
    assert fact("parameters", {"total": 2_000_000, "small": 900}) == "total 2.00 M, small 900"
    assert fact("modalities", ["ct", "mri"]) == "ct, mri"


def test_missing_figures_are_dashes():
    assert (decimals(0.12345), decimals(None)) == ("0.123", "–")
    assert (interval_text([0.1, 0.25]), interval_text(None), interval_text(None, "")) == ("0.100 to 0.250", "–", "")
    assert percent(0.256) == "26%"
