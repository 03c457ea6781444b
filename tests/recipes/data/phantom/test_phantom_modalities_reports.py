"""Reports and prompts of the four modalities: they name the finding and its place, and nothing else."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recipes.data.phantom import phantom_prompts
from recipes.data.phantom.modalities import FINDING_NAMES, FINDINGS, MODALITIES, findings_of
from recipes.data.phantom.modalities.prompts import CLASS_PROMPTS
from recipes.data.phantom.modalities.reports import write_report
from recipes.data.phantom.modalities.wording import NORMAL_SENTENCES, OPENINGS, SENTENCES, TECHNIQUES


def plain_words(text: str) -> list[str]:
    return text.lower().replace(",", " ").replace(".", " ").split()


@settings(deadline=None, max_examples=200)
@given(seed=st.integers(0, 2**32), which=st.integers(0, 11), where=st.integers(0, 11))
def test_report_names_its_finding_and_place_alone(seed: int, which: int, where: int) -> None:
    finding = FINDINGS[which]
    place = finding.places[where % len(finding.places)]
    report = write_report(finding.modality, finding, place, np.random.default_rng(seed))
    assert 10 <= len(report.split()) <= 25
    assert finding.name in report.lower()
    assert set(finding.words) <= set(plain_words(report))
    assert place.words in report
    assert "normal" not in plain_words(report)
    assert not any(name in report.lower() for name in FINDING_NAMES if name != finding.name)
    assert any(technique in report for technique in TECHNIQUES[finding.modality])
    assert report[0].isupper()
    assert report.endswith(".")
    assert "{" not in report


@settings(deadline=None, max_examples=100)
@given(seed=st.integers(0, 2**32), modality=st.sampled_from(MODALITIES))
def test_normal_report_names_no_finding(seed: int, modality: str) -> None:
    report = write_report(modality, None, None, np.random.default_rng(seed))
    assert 10 <= len(report.split()) <= 25
    assert "normal" in plain_words(report)
    assert not any(finding.words[-1] in plain_words(report) for finding in FINDINGS)


def test_the_patients_right_is_the_images_left() -> None:
    places = [place for finding in FINDINGS if finding.modality != "ultrasound" for place in finding.places]
    assert all(("right" in place.words) == (place.side < 0) for place in places)
    assert all(("left" in place.words) == (place.side > 0) for place in places)


def test_wordings_are_complete_and_distinct() -> None:
    assert set(SENTENCES) == set(CLASS_PROMPTS) == set(FINDING_NAMES)
    assert set(OPENINGS) == set(TECHNIQUES) == set(NORMAL_SENTENCES) == set(MODALITIES)
    assert len(set(FINDING_NAMES)) == len(FINDINGS) == 12
    for table in (SENTENCES, CLASS_PROMPTS, OPENINGS, TECHNIQUES, NORMAL_SENTENCES):
        texts = [text for texts in table.values() for text in texts]
        assert len(set(texts)) == len(texts)
        assert all(len(texts) >= 3 for texts in table.values())
    assert all(sentence.count("{place}") == 1 for sentences in SENTENCES.values() for sentence in sentences)


def test_reports_vary() -> None:
    finding = FINDINGS[0]
    reports = [write_report("xray", finding, finding.places[0], np.random.default_rng(seed)) for seed in range(200)]
    assert 30 < len(set(reports)) < 200
    assert {report.split(".")[0] in TECHNIQUES["xray"][0] for report in reports} == {True, False}


@pytest.mark.parametrize("modality", MODALITIES)
def test_prompts_have_the_form_of_a_prompt_file(modality: str) -> None:
    prompts = phantom_prompts(modality)
    names = [finding.name for finding in findings_of(modality)]
    assert list(prompts) == ["classes", "absent"]
    assert list(prompts["classes"]) == list(prompts["absent"]) == [*names, "normal"]
    for name in names:
        assert len(prompts["classes"][name]) >= 3
        assert all(name in prompt.lower() for prompt in prompts["classes"][name])
        assert all((name in prompt and "ormal" in prompt) or "clear" in prompt for prompt in prompts["absent"][name])
        assert not set(prompts["classes"][name]) & set(prompts["absent"][name])
    assert all("normal" in prompt.lower() for prompt in prompts["classes"]["normal"])
    assert [any(name in prompt for name in names) for prompt in prompts["absent"]["normal"]] == [True] * 3


def test_writing_to_prompts_leaves_the_next_ones_alone() -> None:
    phantom_prompts("ct")["classes"]["liver mass"].clear()
    assert phantom_prompts("ct")["classes"]["liver mass"]


def test_unknown_modality_is_refused() -> None:
    message = "modality: expected one of xray, ct, ultrasound, mri, got 'pet'"
    for call in (phantom_prompts, findings_of):
        with pytest.raises(ValueError, match=message):
            call("pet")
