"""Comparing the test predictions of two runs: alignment by study, refusals, and what is written."""

import json

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from recipes.medvlmoe import __main__ as cli
from recipes.shared.compare import compare_runs, comparison_table
from recipes.shared.scores.metrics import auroc

CLASSES = ("Effusion", "Mass")


def predictions(*, noise=0.5, seed=0, studies=120, studies_each=2):
    """A table of predictions; labels and patients depend on nothing but the number of studies."""
    labels = (np.random.default_rng(99).random((studies, 2)) < 0.4).astype(float)
    probs = 1 / (1 + np.exp(-(labels - 0.5) - noise * np.random.default_rng(seed).normal(size=labels.shape)))
    table = {"id": [f"{i:03d}" for i in range(studies)], "group": [f"0{i // studies_each}" for i in range(studies)]}
    table |= {"split": "test"} | {f"label:{name}": labels[:, c] for c, name in enumerate(CLASSES)}
    return pd.DataFrame(table | {f"prob:{name}": probs[:, c] for c, name in enumerate(CLASSES)})


def write(folder, table):
    folder.mkdir(parents=True)
    table.to_csv(folder / "predictions.csv", index=False)
    return folder


def test_studies_are_aligned_by_id_and_classes_by_name(tmp_path):
    a, b = predictions(seed=1), predictions(seed=2, noise=2.0)
    first, second = write(tmp_path / "a", a), write(tmp_path / "b", b)
    columns = [name for name in b if ":" not in name]
    classes = [f"{kind}:{name}" for kind in ("label", "prob") for name in reversed(CLASSES)]
    other_split = b.head(3).assign(split="val", id=["x", "y", "z"])
    mixed = pd.concat([other_split, b.sample(frac=1, random_state=0)])[columns + classes]
    shuffled = write(tmp_path / "c", mixed)
    result = compare_runs(first, second, bootstrap=200)
    again = compare_runs(first, shuffled, bootstrap=200)
    assert again | {"runs": result["runs"]} == result
    row = result["per_class"]["Mass"]
    assert row["first"] == pytest.approx(auroc(a["prob:Mass"], a["label:Mass"]))
    assert row["second"] == pytest.approx(auroc(b["prob:Mass"], b["label:Mass"]))
    assert row["difference"] == pytest.approx(row["first"] - row["second"])
    low, high = result["macro"]["difference_ci95"]
    assert 0 < low < result["macro"]["difference"] < high
    assert result["macro"]["p"] < 0.01
    assert (result["studies"], result["patients"]) == (120, 60)
    assert row["method"] == result["macro"]["method"] == "bootstrap"
    assert result["seeds"] is None


def test_delong_needs_one_study_per_patient_and_holm_adjusts_the_table(tmp_path):
    tables = [predictions(seed=s, noise=n, studies_each=1) for s, n in ((1, 1.0), (2, 1.4))]
    result = compare_runs(*(write(tmp_path / str(i), table) for i, table in enumerate(tables)), bootstrap=100)
    rows = result["per_class"].values()
    assert [row["method"] for row in rows] == ["delong", "delong"]
    assert result["macro"]["method"] == "bootstrap"
    small, large = sorted((row["p"], row["p_holm"]) for row in rows)
    assert small[1] == pytest.approx(min(1, 2 * small[0]))
    assert large[1] == pytest.approx(max(small[1], large[0]))
    assert "p_holm" not in result["macro"]


def test_seeds_are_a_spread_of_their_own(tmp_path):
    for run, noise in (("a", 0.6), ("b", 1.5)):
        for s in range(3):
            write(tmp_path / run / f"seed-{s}", predictions(seed=10 * s + (run == "b"), noise=noise))
    result = compare_runs(tmp_path / "a", tmp_path / "b", bootstrap=100)
    seeds = result["seeds"]
    assert seeds["paired"]
    differences = np.subtract(seeds["first"], seeds["second"])
    assert seeds["difference"] == pytest.approx(differences.mean())
    assert seeds["difference"] == pytest.approx(result["macro"]["difference"])
    half = stats.t.ppf(0.975, 2) * differences.std(ddof=1) / 3**0.5
    assert seeds["difference_ci95"] == pytest.approx([differences.mean() - half, differences.mean() + half])
    assert seeds["p"] == pytest.approx(stats.ttest_1samp(differences, 0).pvalue)
    assert "paired by seed" in comparison_table(result)
    (tmp_path / "b" / "seed-2").rename(tmp_path / "b" / "seed-7")
    other = compare_runs(tmp_path / "a", tmp_path / "b", bootstrap=100)["seeds"]
    assert not other["paired"]
    assert other["p"] == pytest.approx(stats.ttest_ind(other["first"], other["second"], equal_var=False).pvalue)
    assert compare_runs(tmp_path / "a", tmp_path / "a" / "seed-0", bootstrap=100)["seeds"] is None


def test_a_run_equals_itself(tmp_path):
    run = tmp_path / "a"
    for s in range(2):
        write(run / f"seed-{s}", predictions(seed=s))
    result = compare_runs(run, run, bootstrap=100)
    assert (result["macro"]["difference"], result["macro"]["p"]) == (0.0, 1.0)
    assert (result["seeds"]["difference"], result["seeds"]["p"]) == (0.0, 1.0)


def damaged(kind):
    table = predictions(seed=2)
    if kind == "studies":
        return table.iloc[3:]
    if kind == "twice":
        return pd.concat([table, table.head(1)])
    if kind == "classes":
        return table.rename(columns={"prob:Mass": "prob:Nodule", "label:Mass": "label:Nodule"})
    if kind == "label":
        return table.assign(
            **{"label:Mass": 1 - table["label:Mass"].where(table["id"] == "007", 1 - table["label:Mass"])}
        )
    if kind == "unknown":
        return table.assign(**{"label:Mass": table["label:Mass"].where(table["id"] != "008")})
    if kind == "patient":
        return table.assign(group=table["group"].where(table["id"] != "004", "another"))
    if kind == "column":
        return table.drop(columns="label:Mass")
    if kind == "words":
        return table.assign(**{"prob:Mass": "high"})
    return table.assign(split="val")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("studies", r"3 are in the first alone \('000', '001', '002'\) and 0 in the second alone \(none\)"),
        ("twice", r"b.predictions\.csv: '000' occurs twice"),
        ("classes", r"same classes, got \['Effusion', 'Mass'\] and \['Effusion', 'Nodule'\]"),
        ("label", "must have the same labels, but those of 1 studies differ: '007'"),
        ("unknown", "must have the same labels, but those of 1 studies differ: '008'"),
        ("patient", "must have the same patients, but those of 1 studies differ: '004'"),
        ("column", "a column is missing: .*label:Mass"),
        ("words", "expected a table of predictions"),
        ("val", "holds no test study or no class"),
    ],
)
def test_other_sets_are_refused(tmp_path, kind, message):
    first, second = write(tmp_path / "a", predictions(seed=1)), write(tmp_path / "b", damaged(kind))
    with pytest.raises(ValueError, match=message):
        compare_runs(first, second, bootstrap=100)


def test_a_run_that_was_not_evaluated_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"predictions\.csv does not exist: evaluate the run first"):
        compare_runs(tmp_path, tmp_path)
    (tmp_path / "predictions.csv").write_text("")
    with pytest.raises(ValueError, match="expected a table of predictions"):
        compare_runs(tmp_path, tmp_path)


def test_the_command_prints_a_table_and_writes_json(tmp_path, capsys):
    first, second = write(tmp_path / "a", predictions(seed=1)), write(tmp_path / "b", predictions(seed=2, noise=2))
    out = tmp_path / "results" / "comparison.json"
    cli.main(["compare", str(first), str(second), "--bootstrap", "100", "--out", str(out)])
    printed = capsys.readouterr().out
    assert "120 test studies of 60 patients" in printed
    assert "| macro mean | " in printed
    assert "| Effusion | " in printed
    assert "fewer than two of a run" in printed
    assert json.loads(out.read_text()) == compare_runs(first, second, bootstrap=100)
