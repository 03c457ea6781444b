"""Tables and figures from cells that are drawn: what their rows say, and what they say where there is nothing."""

import csv
import json

import pytest

from recipes.medvlmoe import __main__ as cli
from recipes.medvlmoe.config import tiny
from recipes.medvlmoe.tables import options as options_module
from recipes.medvlmoe.tables.figure3 import verdict
from recipes.medvlmoe.tables.printed import COLUMN, TABLE_1, TABLE_2
from recipes.medvlmoe.tables.table2 import variations
from recipes.shared.report.formats import decimals
from tests.recipes.medvlmoe.tables.fake_cells import fake_sweep

STRENGTHS = {
    "medvlmoe": 2.0,
    "pixels": 1.0,
    "convirt": 0.0,
    "gloria": 0.8,
    "medvlmoe-no-moe": 2.0,
    "medvlmoe-single-ffn": 1.4,
    "medvlmoe-no-fusion": 0.6,
    "medvlmoe-no-text": 0.4,
    "medvlmoe-vision-only": 0.2,
    "medvlmoe-top-1": 1.9,
    "medvlmoe-top-4": 2.1,
    "medvlmoe-top-8": 2.1,
}


def rows_of(path):
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))


def section(text, title):
    return text.split(f"## {title}\n")[1].split("\n## ")[0]


@pytest.fixture
def presets():
    """Every preset of a baseline is the tiny one; which they are is tested with the baselines."""

    def parse(arguments):
        place = arguments.index("--preset") + 1
        return cli.parse_train([*arguments[:place], "tiny", *arguments[place + 1 :]])

    return parse


def command(name, monkeypatch, *arguments, failing=(), missing=(), parse=cli.parse_train):
    from recipes.medvlmoe.tables.command import run_command

    monkeypatch.setattr(options_module, "run_sweep", fake_sweep(STRENGTHS, failing, missing))
    run_command(name, list(map(str, arguments)), parse)


def test_table_1_has_a_row_for_every_model_and_data_set(tmp_path, monkeypatch, presets):
    command(
        "table1", monkeypatch, "--out", tmp_path,
        "--data-sets", "phantom", f"pathmnist=--data {tmp_path}/pathmnist.npz",
        "--models", "medvlmoe", "convirt", "pixels", "--seeds", "0", "1", "--bootstrap", "200",
        failing=("convirt/seed-1",), parse=presets,
    )  # fmt: skip
    rows = {(row["data_set"], row["model"]): row for row in rows_of(tmp_path / "table1.csv")}
    assert len(rows) == 3 * 6
    ours, convirt, pixels = (rows["phantom", name] for name in ("medvlmoe", "convirt", "pixels"))
    assert ours["difference"] == ours[COLUMN] == ""
    assert (ours["seeds"], convirt["seeds"], pixels["seeds"]) == ("2", "1", "1")
    assert (float(ours["sd_over_seeds"]) > 0, convirt["sd_over_seeds"]) == (True, "")
    assert float(ours["macro_auroc_low"]) < float(ours["macro_auroc"]) < float(ours["macro_auroc_high"])
    assert "seed 1: failed: ValueError: no such class" in convirt["notes"]
    assert "no AUROC for Rare | class" in convirt["notes"]
    assert f"below the floor of its pixels, {float(pixels['macro_auroc']):.3f}: " in convirt["notes"]
    assert "below" not in ours["notes"]
    # Two comparisons in the table: the smaller p-value counts double.
    p = sorted((float(row["p"]), float(row["p_holm"])) for row in (convirt, pixels))
    assert p[0][1] == pytest.approx(min(1, 2 * p[0][0]))
    seeds = {(row["model"], row["seed"]): row for row in rows_of(tmp_path / "table1-seeds.csv")}
    difference = float(seeds["convirt", "0"]["macro_auroc"]) - float(seeds["medvlmoe", "0"]["macro_auroc"])
    assert float(seeds["convirt", "0"]["difference"]) == pytest.approx(difference)
    assert float(convirt["difference"]) == pytest.approx(difference)  # over the seed that both have
    absent = rows["pathmnist", "convirt"]
    assert absent["notes"] == f"absent: no file {tmp_path}/pathmnist.npz"
    assert absent[COLUMN] == "85.4 ± 0.9"
    assert rows["chexpert", "medvlmoe"]["notes"] == "absent: pass --data-sets chexpert:FOLDER"
    assert rows["chexpert", "medvlmoe"][COLUMN] == "91.2 ± 0.3"
    text = (tmp_path / "table1.md").read_text()
    assert COLUMN in section(text, "Scores and differences to MedVLMoE").splitlines()[1]
    assert "BioViL is better on two of five sets" in text
    assert "| phantom | – | multi-label | 10 / 30 / 60 | 3 | yes |" in section(text, "Data sets")
    assert "Cells: 4 of 5 finished, 1 failed." in text
    assert f"| medvlmoe | {decimals(float(ours['macro_auroc']))} (" in text
    assert (tmp_path / "table1.png").read_bytes().startswith(b"\x89PNG")
    states = {row["cell"]: row for row in rows_of(tmp_path / "table1-cells.csv")}
    assert states["phantom/convirt/seed-1"]["error"] == "ValueError: no such class"
    assert states["phantom/pixels/seed-0"]["commit"] == "abc"
    assert json.loads((tmp_path / "table1.json").read_text())["rows"][0]["model"] == "medvlmoe"


def test_table_1_compares_every_model_with_the_floor_of_its_pixels(tmp_path, monkeypatch, presets):
    models = ("medvlmoe", "convirt", "gloria", "pixels")
    arguments = ("--out", tmp_path, "--data-sets", "phantom", "--seeds", "0", "1", "--bootstrap", "200")
    command("table1", monkeypatch, *arguments, "--models", *models, parse=presets)
    floors = {(row["model"], row["class"]): row for row in rows_of(tmp_path / "table1-floors.csv")}
    table = {row["model"]: row for row in rows_of(tmp_path / "table1.csv") if row["data_set"] == "phantom"}
    assert set(floors) == {
        (model, name) for model in models[:3] for name in ("macro mean", "Mass", "Nodule", "Rare | class")
    }
    verdicts = {model: floors[model, "macro mean"]["verdict"] for model in models[:3]}
    assert verdicts == {"medvlmoe": "above", "convirt": "below", "gloria": "undecided"}
    for model in models[:3]:
        row = floors[model, "macro mean"]
        assert float(row["auroc"]) == pytest.approx(float(table[model]["macro_auroc"]))
        assert float(row["floor"]) == pytest.approx(float(table["pixels"]["macro_auroc"]))
        assert float(row["difference"]) == pytest.approx(float(row["auroc"]) - float(row["floor"]))
        by_class = [float(floors[model, name]["auroc"]) for name in ("Mass", "Nodule")]
        assert float(row["auroc"]) == pytest.approx(sum(by_class) / 2)
    test = rows_of(tmp_path / "runs/phantom/pixels/seed-0/predictions.csv")
    mass = [row["group"] for row in test if row["split"] == "test" and row["label:Mass"] == "1.0"]
    assert int(floors["convirt", "Mass"]["positive_studies"]) == len(mass)
    assert int(floors["convirt", "Mass"]["positive_patients"]) == len(set(mass)) < len(mass)
    rare = floors["convirt", "Rare | class"]
    assert (rare["positive_studies"], rare["auroc"], rare["verdict"]) == ("0", "", "")
    assert "below the floor of its pixels" in table["gloria"]["notes"]
    assert table["gloria"]["notes"].endswith("undecided on these patients")
    page = section((tmp_path / "table1.md").read_text(), "Against the floor of the pixels")
    convirt = next(line for line in page.splitlines() if line.startswith("| convirt"))
    assert f"Mass {decimals(float(floors['convirt', 'Mass']['auroc']))} (floor " in convirt
    assert "| medvlmoe | phantom |" in page
    assert page.count("| none |") == 1


def test_table_1_without_the_regression_on_pixels_has_no_floor(tmp_path, monkeypatch, presets):
    command(
        "table1", monkeypatch, "--out", tmp_path, "--data-sets", "phantom", "--models", "medvlmoe", "convirt",
        "--seeds", "0", parse=presets,
    )  # fmt: skip
    page = section((tmp_path / "table1.md").read_text(), "Against the floor of the pixels")
    assert "No cells of a model and of `pixels` are finished on the same data set." in page
    assert rows_of(tmp_path / "table1-floors.csv") == []


def test_figure_2_shows_the_cells_of_table_1(tmp_path, monkeypatch, presets):
    arguments = ("--out", tmp_path, "--data-sets", "phantom", "--models", "medvlmoe", "convirt", "--seeds", "0")
    command("figure2", monkeypatch, *arguments, parse=presets)
    rows = {(row["data_set"], row["model"]): row for row in rows_of(tmp_path / "figure2.csv")}
    assert float(rows["phantom", "medvlmoe"]["macro_auroc"]) > float(rows["phantom", "convirt"]["macro_auroc"])
    assert rows["mimic-cxr", "convirt"][COLUMN] == "80.1 ± 0.8"
    assert COLUMN in (tmp_path / "figure2.md").read_text()
    assert (tmp_path / "figure2.png").read_bytes().startswith(b"\x89PNG")


def test_table_1_refuses_models_that_it_does_not_know(tmp_path, monkeypatch):
    for models, message in (
        (
            ("medvlmoe", "resnet"),
            r"models \(--models\) must be different ones of medvlmoe, convirt, .* got medvlmoe, resnet",
        ),
        (("convirt",), r"models \(--models\) must hold medvlmoe"),
    ):
        with pytest.raises(ValueError, match=message):
            command("table1", monkeypatch, "--out", tmp_path, "--data-sets", "phantom", "--models", *models)


def test_table_2_compares_every_variant_with_the_full_model(tmp_path, monkeypatch):
    arguments = ("--out", tmp_path, "--data-sets", "phantom", "--bootstrap", "200")
    command("table2", monkeypatch, *arguments, missing=("vision-only/seed-2",))
    rows = {row["variant"]: row for row in rows_of(tmp_path / "table2.csv")}
    assert list(rows) == ["full", "no-moe", "single-ffn", "no-fusion", "no-text", "vision-only"]
    assert [rows[name][COLUMN] for name in ("full", "no-moe", "vision-only")] == [
        "89.3 ± 0.4 % (–)", "", "81.5 ± 0.7 % (-7.8)",
    ]  # fmt: skip
    base = tiny().model
    assert int(rows["full"]["active_hidden"]) == int(rows["no-moe"]["active_hidden"]) == 2 * base.expert_hidden_dim
    assert int(rows["single-ffn"]["active_hidden"]) == base.expert_hidden_dim
    text = float(rows["no-text"]["macro_auroc"]) - float(rows["full"]["macro_auroc"])
    assert float(rows["no-text"]["difference"]) == pytest.approx(text)
    assert float(rows["no-text"]["difference_high"]) < 0
    assert float(rows["no-text"]["p_holm"]) < 0.05 < float(rows["no-moe"]["p_holm"])
    low, high = (float(rows["no-text"][f"difference_over_seeds_{end}"]) for end in ("low", "high"))
    assert low < text < high
    assert "seed 2: not run" in rows["vision-only"]["notes"]
    page = (tmp_path / "table2.md").read_text()
    assert "phantom: full model less `no-moe` " in section(page, "Does the mixture help?")
    assert "ChestX-ray14, which has no reports" in page
    assert "Cells: 17 of 18 finished, 1 not run." in page
    cells = section(page, "Every cell, and its difference to the full model of the same seed")
    assert len(cells.strip().splitlines()) == 2 + 18
    assert (tmp_path / "table2.png").read_bytes().startswith(b"\x89PNG")


def test_sweeps_of_table_2_stand_apart_and_share_the_full_model(tmp_path, monkeypatch):
    arguments = ("--out", tmp_path, "--data-sets", "phantom", "--bootstrap", "200", "--seeds", "0", "1")
    command("table2", monkeypatch, *arguments, "--sweeps", "top-k")
    rows = rows_of(tmp_path / "table2-top-k.csv")
    assert [row["variant"] for row in rows] == ["full", "top-1", "top-4", "top-8"]
    assert [int(row["active_hidden"]) for row in rows] == [512, 256, 1024, 2048]
    assert not (tmp_path / "table2.csv").exists()
    assert (tmp_path / "runs/phantom/medvlmoe/seed-0").is_dir()
    with pytest.raises(ValueError, match=r"sweeps \(--sweeps\) must be different ones of core, .* got core, core"):
        command("table2", monkeypatch, *arguments, "--sweeps", "core", "core")
    with pytest.raises(ValueError, match=r"sweeps \(--sweeps\) top-k: with 1 experts \(--num-experts\) only top 1 is"):
        command("table2", monkeypatch, *arguments, "--sweeps", "top-k", "--", "--num-experts", "1", "--top-k", "1")


def test_what_the_sweeps_vary():
    base = tiny()
    changed = {
        sweep: [dict(one.model.settings) for one in variations(sweep, base)] for sweep in ("core", "routing", "experts")
    }
    assert changed["core"] == [
        {}, *({"variant": name} for name in ("no-moe", "single-ffn", "no-fusion", "no-text", "vision-only")),
    ]  # fmt: skip
    assert changed["routing"] == [{}, {"route_on": "token"}]
    assert changed["experts"] == [{}, {"num_experts": 2}, {"num_experts": 4}, {"num_experts": 16}]
    assert {one.model.cell for one in variations("core", base)} == {
        "medvlmoe", "medvlmoe-no-moe", "medvlmoe-single-ffn", "medvlmoe-no-fusion", "medvlmoe-no-text",
        "medvlmoe-vision-only",
    }  # fmt: skip


def test_figure_3_tests_the_claim_on_every_run(tmp_path, monkeypatch):
    arguments = ("--out", tmp_path, "--data-sets", "phantom", f"chexpert:{tmp_path}/none", "--permutations", "99")
    command("figure3", monkeypatch, *arguments, failing=("seed-2",))
    runs = json.loads((tmp_path / "figure3.json").read_text())["runs"]
    assert [run.get("problem") for run in runs] == [
        None, None, "failed: ValueError: no such class", f"absent: no folder {tmp_path}/none",
    ]  # fmt: skip
    first = runs[0]
    # All studies of patients with two studies can be exchanged, and Mass decides between two experts.
    assert first["exchangeable_patients"] == 30
    assert first["diseases"][0]["expert"] == 0
    assert first["diseases"][0]["share"] == pytest.approx(0.5)
    assert first["diseases"][0]["p"] == 0.01
    assert first["diseases"][2]["expert"] is None
    rows = rows_of(tmp_path / "figure3.csv")
    assert (rows[0]["disease"], rows[0]["share_E0"], rows[0][COLUMN]) == ("Mass", "0.5", "> 0.35")
    page = (tmp_path / "figure3.md").read_text()
    assert "no cell can pass 50.0%, uniform routing gives 25.0%" in page
    assert "Rare \\| class" in page
    assert (tmp_path / "figure3.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match=r"permutations \(--permutations\) must be at least 1, got 0"):
        command("figure3", monkeypatch, "--out", tmp_path, "--permutations", "0")


def test_verdicts_of_figure_3():
    words = [
        verdict({"diagonal": {"assigned": assigned, "p_mean_share": p, "above_claim": above}})
        for assigned, p, above in ((0, None, 0), (4, 0.2, 4), (4, 0.01, 4), (4, 0.01, 1))
    ]
    assert words == [
        "no disease has positives in both splits",
        "no specialisation beyond chance",
        "specialised, and every assigned disease above the claimed share",
        "specialised, but 3 of 4 below the claimed share",
    ]


def test_collecting_runs_nothing(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a cell was run")

    from recipes.medvlmoe.tables.command import run_command

    monkeypatch.setattr(options_module, "run_sweep", refuse)
    for name in ("table2", "figure3"):
        run_command(name, ["--out", str(tmp_path), "--data-sets", "phantom", "--collect"], cli.parse_train)
    assert "| full | phantom | none |" in (tmp_path / "table2.md").read_text()
    assert "seed 0, 1, 2: not run" in (tmp_path / "table2.md").read_text()
    assert (tmp_path / "table2.png").is_file()


def test_printed_figures_are_those_of_the_papers_table():
    assert TABLE_1["medvlmoe"][0] == TABLE_2["full"][0] == "89.3 ± 0.4"
    # The contradictions that the notes name.
    best = [max((name for name in TABLE_1 if name != "medvlmoe"), key=lambda name: TABLE_1[name][i]) for i in range(5)]
    assert best == ["biovil", "clip-med", "biovil", "clip-med", "clip-med"]
    gains = [float(TABLE_1["medvlmoe"][i][:4]) - float(TABLE_1["clip-med"][i][:4]) for i in range(5)]
    assert gains == pytest.approx([6.2, 5.6, 6.3, 5.8, 6.3])
