from recipes.shared.report.facts import Figure, data_name, facts, header, is_phantom
from recipes.shared.report.pages import SHARED, environment


def drawn(name, **content):
    return environment(SHARED).get_template(name).render(content)


def test_a_header_names_what_is_known_and_escapes_it():
    about = {"preset": "tiny", "data": {"name": "Phantom <1>"}, "seed": 0}
    figures = [Figure("AUROC", "0.9", "of 1", main=True), Figure("Epochs", "3")]
    made = drawn("header.html.j2", header=header("run", "Model", about, figures, ["a < b"]))
    assert "Model · preset tiny · data: Phantom &lt;1&gt; · seed 0" in made
    assert '<div class="main"><dt>AUROC</dt><dd>0.9<small>of 1</small></dd></div>' in made
    assert "<div><dt>Epochs</dt><dd>3</dd></div>" in made
    assert "<li>a &lt; b</li>" in made


def test_facts_leave_out_what_stands_elsewhere_and_add_time_and_memory():
    about = {"name": "run", "text_encoder": None, "parameters": 1_234_567}
    made = drawn("facts.html.j2", facts=facts(about, {"seed": 3}, time=("run time", 4.2), peak_memory_bytes=3 * 2**29))
    assert "<th>text encoder</th><td>none</td>" in made
    assert "<td>1.23 M</td>" in made
    assert "<th>run time</th><td>4.2 s</td>" in made
    assert "<th>peak memory</th><td>1.50 GiB</td>" in made
    assert "&#34;seed&#34;: 3" in made
    assert "<th>name</th>" not in made


def test_time_and_memory_may_be_unknown():
    assert facts({}, {}, time=("run time", None), peak_memory_bytes=None).rows == []


def test_data_without_a_name():
    assert data_name({}) == "unnamed"
    assert is_phantom({"data": "phantom-modalities"})
    assert not is_phantom({"data": {"name": "openi"}})
