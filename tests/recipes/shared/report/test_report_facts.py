import pytest

from recipes.shared.report.facts import Figure, data_name, duration, facts, header, is_phantom, plain


@pytest.mark.parametrize(("seconds", "text"), [(4.25, "4.2 s"), (75, "1 min 15 s"), (7500, "2 h 5 min")])
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_a_header_names_what_is_known_and_escapes_it():
    about = {"preset": "tiny", "data": {"name": "Phantom <1>"}, "seed": 0}
    made = header("run", "Model", about, [Figure("AUROC", "0.9", "of 1", main=True), Figure("Epochs", "3")], ["a < b"])
    assert "Model · preset tiny · data: Phantom &lt;1&gt; · seed 0" in made
    assert '<div class="main"><dt>AUROC</dt><dd>0.9<small>of 1</small></dd></div>' in made
    assert "<div><dt>Epochs</dt><dd>3</dd></div>" in made
    assert "<li>a &lt; b</li>" in made


def test_facts_leave_out_what_stands_elsewhere_and_add_further_rows():
    made = facts({"name": "run", "text_encoder": None, "parameters": 1_234_567}, {"seed": 3}, [("run time", "4.2 s")])
    assert "<th>text encoder</th><td>none</td>" in made
    assert "<td>1.23 M</td>" in made
    assert "<th>run time</th><td>4.2 s</td>" in made
    assert "&quot;seed&quot;: 3" in made
    assert "<th>name</th>" not in made


def test_facts_in_words():
    assert plain("parameters", {"total": 2_000_000, "small": 900}) == "total 2.00 M, small 900"
    assert plain("modalities", ["ct", "mri"]) == "ct, mri"


def test_data_without_a_name():
    assert data_name({}) == "unnamed"
    assert is_phantom({"data": "phantom-modalities"})
    assert not is_phantom({"data": {"name": "openi"}})
