"""The report of a run shows the ablations that lie beside it."""

import pytest

from recipes.medvlmoe.report import write_report
from tests.recipes.json_files import write_json
from tests.recipes.medvlmoe.report_runs import Elements, write_run


def row(variant, **changes):
    names = ("macro_auroc", "macro_auroc_low", "macro_auroc_high", "sd_over_seeds", "difference", "p_holm")
    values = dict.fromkeys((*names, "difference_low", "difference_high"))
    return {"variant": variant, "data_set": "phantom-hard", "seeds": 3, "notes": ""} | values | changes


@pytest.fixture
def table(tmp_path):
    folder = tmp_path / "table2"
    folder.mkdir()
    rows = [
        row("full", macro_auroc=0.912, macro_auroc_low=0.89, macro_auroc_high=0.93, sd_over_seeds=0.004),
        row("no-text", macro_auroc=0.7, difference=-0.212, difference_low=-0.25, difference_high=-0.17, p_holm=0.0004),
        row("<b>other", notes="seed 0, 1, 2: not run"),
    ]
    write_json(folder / "table2.json", {"size": "tiny", "rows": rows})
    return folder / "table2.json"


def test_the_ablations_beside_a_run_are_summed_up(tmp_path, table):
    page = write_report(write_run(tmp_path / "run")).read_text()
    Elements(page)
    section = page.split("Ablations")[1].split("</section>")[0]
    for text in (
        "0.912",
        "0.890 to 0.930",
        "0.004",
        "-0.212",
        "-0.250 to -0.170",
        "&lt;b&gt;other",
        "not run",
        "3 seeds",
    ):
        assert text in section


def test_without_a_table_there_is_no_section(tmp_path):
    assert "Ablations" not in write_report(write_run(tmp_path / "run")).read_text()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "table2.json: expected JSON"),
        ("{}", 'table2.json: the field "rows" is missing'),
        ('{"rows": [{}], "size": ""}', "table2.json"),
    ],
)
def test_a_damaged_table_is_named(tmp_path, table, content, message):
    table.write_text(content)
    with pytest.raises(ValueError, match=message):
        write_report(write_run(tmp_path / "run"))
