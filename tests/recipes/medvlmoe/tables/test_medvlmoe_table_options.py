"""Options of the tables: data sets, what is absent, and what contradicts."""

import numpy as np
import pytest

from recipes.medvlmoe import __main__ as cli
from recipes.medvlmoe.config import DataConfig
from recipes.medvlmoe.tables.data_sets import DataSet, official_name, parse_data_sets, why_absent
from recipes.medvlmoe.tables.options import TableOptions, run_grid


def options(tmp_path, **changes):
    return TableOptions(**({"out": tmp_path, "data_sets": ("phantom",)} | changes))


def grid(tmp_path, **changes):
    return run_grid(options(tmp_path, **changes), lambda base: [], "tiny", cli.parse_train)


def test_three_ways_to_name_a_data_set(tmp_path):
    file = tmp_path / "sets.toml"
    file.write_text("covid = \"--data notes.csv --label-columns 'No Finding' ARDS\"\nbusi = '--data busi.npz'\n")
    assert parse_data_sets(["breastmnist", "chexpert:~/c", "a/b c.npz", "mine=--data x.csv", str(file)]) == [
        DataSet("breastmnist", ("--data", "breastmnist")),
        DataSet("chexpert", ("--data", "chexpert:~/c")),
        DataSet("b-c", ("--data", "a/b c.npz")),
        DataSet("mine", ("--data", "x.csv")),
        DataSet("covid", ("--data", "notes.csv", "--label-columns", "No Finding", "ARDS")),
        DataSet("busi", ("--data", "busi.npz")),
    ]
    assert [official_name(name) for name in ("chexpert:x", "/d/pathmnist.npz", "pathmnist_718.npz", "phantom")] == [
        "chexpert", "pathmnist", "pathmnist_718", "phantom",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([], r"data_sets \(--data-sets\) must name at least one data set"),
        (["phantom", "phantom"], "must have different names, got phantom more than once"),
        (["a=--epochs 3"], r"the options of a must hold --data, got '--epochs 3'"),
        (["a=--data 'x"], r"options of a cannot be split \(No closing quotation\)"),
        (["none.toml"], r"none.toml cannot be read \(.*No such file"),
        (["???/"], r"gives no name for a folder. Write NAME=OPTIONS"),
    ],
)
def test_data_sets_that_are_refused(entries, message):
    with pytest.raises(ValueError, match=message):
        parse_data_sets(entries)


def test_a_file_of_data_sets_must_hold_options(tmp_path):
    file = tmp_path / "sets.toml"
    for content, message in (
        ("a = 3", r'must have lines NAME = "OPTIONS", got \'a\' = 3'),
        ("a = [", "cannot be read"),
    ):
        file.write_text(content)
        with pytest.raises(ValueError, match=message):
            parse_data_sets([str(file)])


def test_why_a_data_set_is_absent(tmp_path):
    present = tmp_path / "here.npz"
    np.savez(present, a=np.zeros(1))
    assert why_absent(DataConfig("phantom")) is None
    assert why_absent(DataConfig(str(present))) is None
    assert why_absent(DataConfig(f"chexpert:{tmp_path}")) is None
    assert why_absent(DataConfig(f"chexpert:{tmp_path}/none")) == f"no folder {tmp_path}/none"
    assert why_absent(DataConfig(f"{tmp_path}/x.csv")) == f"no file {tmp_path}/x.csv"
    assert "breastmnist.npz' does not exist" in why_absent(DataConfig("breastmnist", data_root=tmp_path))
    assert why_absent(DataConfig("breastmnist", data_root=tmp_path, download=True)) is None
    (tmp_path / "breastmnist.npz").touch()
    assert why_absent(DataConfig("breastmnist", data_root=tmp_path)) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": ()}, r"seeds \(--seeds\) must be different numbers, at least one, got \(\)"),
        ({"seeds": (1, 1)}, r"must be different numbers, at least one, got \(1, 1\)"),
        ({"collect": True, "redo": ("*",)}, "--collect runs nothing, and --redo runs cells again: give one of them"),
        ({"bootstrap": 50}, r"bootstrap \(--bootstrap\) must be at least 100 resamples, got 50"),
        ({"bootstrap": 0}, r"bootstrap \(--bootstrap\) must be at least 100 resamples, got 0"),
        ({"workers": 0}, r"workers \(--workers\) must be at least 1, got 0"),
        ({"train": ("--variant", "no-moe")}, "--variant cannot be among the options of train behind --: table2 runs"),
        ({"train": ("--out=x",)}, "--out cannot be among the options of train behind --: the table's --out"),
        ({"train": ("--seeds", "3")}, "--seeds cannot be among .* give --seeds to the table"),
        ({"train": ("--resume",)}, "--resume cannot be among .* a table goes on with what its folder holds"),
        ({"train": ("--data", "x.csv")}, "--data cannot be among .* give --data-sets to the table"),
        ({"train": ("--preset", "paper")}, "--preset cannot be among .* --size and --models choose presets"),
        (
            {"data_sets": ("a=--data phantom --preset paper",)},
            "options of train of the data set a: --size and --models",
        ),
    ],
)
def test_contradictory_options_are_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        grid(tmp_path, **changes)


def test_a_cell_is_what_train_would_run(tmp_path, monkeypatch):
    from recipes.medvlmoe.tables import options as module
    from recipes.medvlmoe.tables.options import Model

    monkeypatch.setattr(module, "run_sweep", lambda cells, *_, **__: {})
    one = run_grid(
        options(
            tmp_path, data_sets=("a=--data phantom --epochs 3",), seeds=(4,), train=("--epochs", "9", "--dim", "64")
        ),
        lambda base: [Model("m", "m", "tiny", {"top_k": 1}), Model("pixels", "pixels", None, {})],
        "tiny",
        cli.parse_train,
    )
    config = one.cells["a", "m", 4].settings["config"]
    assert one.cells["a", "m", 4].name == "a/m/seed-4"
    assert (config["train"]["epochs"], config["model"]["dim"], config["model"]["top_k"]) == (3, 64, 1)
    assert config["seeds"] == [4]
    assert "out" not in config
    assert one.cells["a", "pixels", 4].settings["config"].keys() == {"data", "seeds"}


def test_settings_outside_their_limits_are_refused_before_anything_runs(tmp_path):
    from recipes.medvlmoe.tables.options import Model

    def too_many(base):
        return [Model("m", "m", "tiny", {"top_k": 99})]

    with pytest.raises(ValueError, match=r"top_k \(--top-k\) must be at most num_experts"):
        run_grid(options(tmp_path), too_many, "tiny", cli.parse_train)


def test_an_option_for_all_cells_goes_to_the_models_that_read_it(tmp_path, monkeypatch):
    from recipes.medvlmoe.tables import options as module
    from recipes.medvlmoe.tables.options import Model

    monkeypatch.setattr(module, "run_sweep", lambda cells, *_, **__: {})
    models = [Model("a", "a", "tiny", {}), Model("b", "b", "convirt-tiny", {}), Model("pixels", "pixels", None, {})]

    def cells(*train):
        return run_grid(options(tmp_path, train=train, seeds=(0,)), lambda _: models, "tiny", cli.parse_train).cells

    mixed = cells("--contrast-epochs", "3", "--top-k", "1")
    of = {name: cell.settings["config"] for (_, name, _), cell in mixed.items()}
    assert [of[name]["train"]["contrast_epochs"] for name in "ab"] == [50, 3]
    assert [of[name]["model"]["top_k"] for name in "ab"] == [1, 2]
    with pytest.raises(ValueError, match=r"^--masked-weight: no model of the table reads this on phantom"):
        cells("--masked-weight", "0.5")
    with pytest.raises(ValueError, match=r"classifier \(--classifier\) 'zero-shot' is trained by a contrast"):
        cells("--classifier", "zero-shot")
