"""Every code block of the documentation runs, and every command and option in it exists."""

import contextlib
import dataclasses
import functools
import io
import json
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

import recipes.medmoe.report
from benchmarks import __main__ as benchmarks_cli
from examples import federated
from moekit.inspect import __main__ as inspect_cli
from recipes.data import __main__ as data_cli
from recipes.medmoe import __main__ as medmoe_cli
from recipes.medmoe import presets as medmoe_presets
from recipes.medmoe import retrieve
from recipes.medmoe.explain import stage as explain
from recipes.medmoe.few_shot import stage as few_shot
from recipes.medmoe.flops import stage as flops
from recipes.medmoe.flops import table3
from recipes.medmoe.pretrain import stage as pretrain
from recipes.medmoe.probe import stage as probe
from recipes.medmoe.segment import stage as segment
from recipes.medmoe.tables import figure3 as medmoe_figure3
from recipes.medmoe.tables import table1 as medmoe_table1
from recipes.medmoe.tables import table2 as medmoe_table2
from recipes.medmoe.use import classify, embed, search
from recipes.medmoe.zero_shot import stage as zero_shot
from recipes.medvlmoe import __main__ as cli
from recipes.medvlmoe import card, evaluate, external, predict, report, serve, train
from recipes.medvlmoe.config import paper, tiny
from recipes.medvlmoe.tables import figure3, table1, table2
from recipes.medvlmoe.tables.data_sets import parse_data_sets
from recipes.medvlmoe.tables.options import TableOptions, check_options
from recipes.shared import compare
from tests.docs.pages import PAGES, ROOT, blocks_of, commands_of, name_of

# Whatever stands in a block of another language would go unchecked without notice.
LANGUAGES = {"python", "bash", "text", "json"}


def test_there_are_blocks_to_run() -> None:
    assert sum(block.language == "python" for page in PAGES for block in blocks_of(page)) > 20
    assert sum(1 for page in PAGES for _ in commands_of(page)) > 20


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_block_is_of_a_language_that_is_checked(page: Path) -> None:
    unknown = [(block.line, block.language) for block in blocks_of(page) if block.language not in LANGUAGES]
    assert not unknown, f"{name_of(page)}: give these blocks one of the languages {sorted(LANGUAGES)}: {unknown}"


# Runs in test_docs_export.py, which checks more of it and knows what it needs.
ELSEWHERE = {"docs/export.md"}
HERE = [page for page in PAGES if "```python" in page.read_text() and name_of(page) not in ELSEWHERE]


@pytest.mark.parametrize("page", HERE, ids=name_of)
def test_python_blocks_run_in_order(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "__docs__"}
    for block in blocks_of(page):
        if block.language == "python":
            # Blank lines in front make a traceback show the page's own line numbers.
            exec(compile("\n" * block.line + block.text, str(page), "exec"), namespace)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_json_blocks_are_json(page: Path) -> None:
    for block in blocks_of(page):
        if block.language == "json":
            json.loads(block.text)


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, list[Any]]:
    """Replaces the stages by a record of their calls."""
    calls: dict[str, list[Any]] = {
        "train": [],
        "evaluate": [],
        "external": [],
        "compare": [],
        "predict": [],
        "report": [],
        "serve": [],
        "table1": [],
        "table2": [],
        "figure2": [],
        "figure3": [],
    }

    def record(stage: str, result: Any) -> Any:
        def run(*args: Any, **kwargs: Any) -> Any:
            calls[stage].append((args, kwargs))
            return result

        return run

    monkeypatch.setattr(train, "main", record("train", []))
    monkeypatch.setattr(evaluate, "main", record("evaluate", {"test": {"macro_auroc": None}}))
    scores = {"scores": {"macro_auroc": None}, "label_map": {}, "not_mapped": [], "data": "other"}
    monkeypatch.setattr(external, "main", record("external", scores))
    monkeypatch.setattr(compare, "compare_runs", record("compare", {}))
    monkeypatch.setattr(compare, "comparison_table", str)
    predicted = pd.DataFrame({"image": ["a.png"]})
    predicted.attrs["uncalibrated"] = ""
    monkeypatch.setattr(predict, "main", record("predict", predicted))
    monkeypatch.setattr(serve, "serve", record("serve", None))

    def checked(stage: str, result: Any) -> Any:
        def run(options: TableOptions, *args: Any) -> Any:
            check_options(options)
            for one in parse_data_sets(options.data_sets):
                cli.parse_train([*options.train, *one.options])
            return record(stage, result)(options, *args)

        return run

    monkeypatch.setattr(table1, "run_table1", checked("table1", (None, [], [])))
    monkeypatch.setattr(table1, "write_table1", lambda *_: [])
    monkeypatch.setattr(table1, "write_figure2", lambda *_: calls["figure2"].append(_) or [])
    monkeypatch.setattr(table2, "run_table2", checked("table2", {}))
    monkeypatch.setattr(figure3, "run_figure3", checked("figure3", []))
    monkeypatch.setattr(report, "write_report", record("report", tmp_path / "report.html"))
    monkeypatch.setattr(card, "write_card", lambda run: run / "README.md")
    monkeypatch.chdir(tmp_path)
    return calls


MEDMOE = {
    "pretrain": pretrain,
    "zero-shot": zero_shot,
    "probe": probe,
    "retrieve": retrieve,
    "flops": flops,
    "table3": table3,
    "explain": explain,
    "classify": classify,
    "embed": embed,
    "search": search,
    "few-shot": few_shot,
    "segment": segment,
}


MEDMOE_TABLES = {"table1": medmoe_table1, "table2": medmoe_table2, "figure3": medmoe_figure3}


@pytest.fixture
def medmoe_stages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, int]:
    """Replaces the stages of MedMoE by a count of their calls, which must have valid options."""
    calls = dict.fromkeys((*MEDMOE, *MEDMOE_TABLES, "report"), 0)

    def counted(stage: str, original: Any, result: Any) -> Any:
        @functools.wraps(original)  # the options are made of the signature
        def run(*args: Any, **kwargs: Any) -> Any:
            calls[stage] += 1
            return result

        return run

    for stage, module in MEDMOE.items():
        monkeypatch.setattr(module, "main", counted(stage, module.main, []))
    for table, module in MEDMOE_TABLES.items():
        result = None if table == "figure3" else (None, [])

        def run(options: Any, *args: Any, table: str = table, result: Any = result, **kwargs: Any) -> Any:
            medmoe_cli.parse_pretrain(list(options.train))
            calls[table] += 1
            return result

        monkeypatch.setattr(module, f"run_{table}", run)
        monkeypatch.setattr(module, f"write_{table}", lambda *_: [])
    written = tmp_path / "report.html"
    monkeypatch.setattr(
        recipes.medmoe.report, "write_report", counted("report", recipes.medmoe.report.write_report, written)
    )
    return calls


@pytest.mark.parametrize("page", [page for page in PAGES if any(commands_of(page))], ids=name_of)
def test_commands_exist(page: Path, stages: dict[str, list[Any]], medmoe_stages: dict[str, int]) -> None:
    makefile = (ROOT / "Makefile").read_text()
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for words in commands_of(page):
        if re.fullmatch(r"[A-Z_]+=\S*", words[0]):
            words = words[1:]  # set for this command
        match words:
            case ["python", "-m", "recipes.medvlmoe", stage, *options]:
                cli.main([stage, *options])
                assert len(stages[stage]) > 0, f"{shlex.join(words)} did not reach its stage"
            case ["torchrun", "--standalone", "--nproc-per-node", _, "examples/federated.py", *options]:
                federated.parse(options)
            case ["torchrun", *launch] if "recipes.medmoe" in launch:
                stage, *options = launch[launch.index("recipes.medmoe") + 1 :]
                before = medmoe_stages[stage]
                medmoe_cli.main([stage, *options])
                assert medmoe_stages[stage] == before + 1, f"{shlex.join(words)} did not reach its stage"
            case ["torchrun", *launch]:
                start = launch.index("recipes.medvlmoe") + 1
                reached = len(stages[launch[start]])
                cli.main(launch[start:])
                assert len(stages[launch[start]]) == reached + 1, f"{shlex.join(words)} did not reach its stage"
            case ["python", "-m", "recipes.data", "check", *options]:
                data_cli.parse_check(options)
            case ["python", "-m", "recipes.medmoe", stage, *options]:
                before = medmoe_stages[stage]
                medmoe_cli.main([stage, *options])
                assert medmoe_stages[stage] == before + 1, f"{shlex.join(words)} did not reach its stage"
            case ["make", *targets]:
                for target in targets:
                    variable, assigned, value = target.partition("=")
                    pattern = rf"^{variable} \?=" if assigned else rf"^{target}:"
                    assert re.search(pattern, makefile, re.MULTILINE), f"the Makefile has no {variable}"
                    if variable == "CONSTRAINTS":
                        assert (ROOT / value).is_file(), f"there is no {value}"
            case ["pip", "install", "-e", what]:
                for extra in re.findall(r"[\w-]+", "".join(re.findall(r"\[(.*)\]", what))):
                    assert extra in extras, f"pyproject.toml has no extra {extra}"
            case [".venv/bin/python" | "python", "-m", "pytest", *arguments]:
                for argument in arguments:
                    assert argument.startswith("-") or (ROOT / argument).exists(), f"there is no {argument}"
            case [".venv/bin/python" | "python", "-m", "benchmarks", *options]:
                benchmarks_cli.parse(options)
            case ["python", "-m", "moekit.inspect", *options]:
                inspect_cli.parser().parse_args(options)
            case ["pytest", "benchmarks", "--benchmark-only"]:
                assert "pytest-benchmark" in str(extras["bench"])
            case [".venv/bin/python" | "python", script, *_] if script.endswith(".py"):
                assert (ROOT / script).is_file(), f"there is no {script}"
            case _:
                pytest.fail(f"{name_of(page)}: nothing checks the command {shlex.join(words)}")


def test_an_option_that_does_not_exist_is_noticed(stages: dict[str, list[Any]]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["train", "--no-such-option", "1"])
    assert stages["train"] == []


def test_options_named_in_the_text_exist() -> None:
    medvlmoe, medmoe = (set(re.findall(r"--[\w-]+", text)) for text in (_help_texts(), _medmoe_help_texts()))
    check = {f"--{field.name}" for field in dataclasses.fields(data_cli.CheckSettings)}
    pages = {
        "docs/medvlmoe.md": medvlmoe | check,
        "docs/medvlmoe-scale.md": medvlmoe | {"--nproc-per-node", "--nnodes"},
        "docs/papers.md": medvlmoe | medmoe,
        "docs/recipes.md": medvlmoe & medmoe,
    }
    pages |= {f"docs/{page.name}": medmoe for page in (ROOT / "docs").glob("medmoe*.md")}
    benchmarks = set(re.findall(r"--[\w-]+", _benchmarks_help_texts()))
    pages |= dict.fromkeys(("docs/benchmarks.md", "benchmarks/README.md", "benchmarks/compiled/README.md"), benchmarks)
    for page, known in pages.items():
        named = set(re.findall(r"`(--[a-z][\w-]*)", (ROOT / page).read_text()))
        assert named <= known | {"--help", "--traceback"}, (
            f"{page} names options that do not exist: {sorted(named - known)}"
        )


_INLINE = re.compile(r"`((?:make|python -m (?:benchmarks|recipes\.\w+)) [^`]+)`")
_TABLES = ("table1", "table2", "figure2", "figure3")
_STAGES = {
    "recipes.medvlmoe": ("train", "evaluate", "predict", "report", *_TABLES),
    "recipes.medmoe": (*MEDMOE, *MEDMOE_TABLES, "report"),
}
_STAGES |= {"recipes.data": ("check",)}


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=name_of)
def test_commands_named_in_the_text_exist(page: Path) -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    # A word in capitals stands for any command.
    commands = {"make": targets, "benchmarks": {*benchmarks_cli.COMMANDS, "COMMAND"}, **_STAGES}
    named = [shlex.split(text) for text in _INLINE.findall(page.read_text())]
    chosen = [words[:2] if words[0] == "make" else words[2:4] for words in named]
    assert [(program, command) for program, command in chosen if command not in commands[program]] == []


def _help_texts() -> str:
    output = io.StringIO()
    for stage in ("train", "evaluate", "external", "compare", "predict", "report"):
        with contextlib.redirect_stdout(output), pytest.raises(SystemExit):
            cli.main([stage, "--help"])
    return output.getvalue()


def _medmoe_help_texts() -> str:
    output = io.StringIO()
    for stage in (*MEDMOE, *MEDMOE_TABLES, "report"):
        with contextlib.redirect_stdout(output), pytest.raises(SystemExit):
            medmoe_cli.main([stage, "--help"])
    return output.getvalue()


def _benchmarks_help_texts() -> str:
    output = io.StringIO()
    for command in benchmarks_cli.COMMANDS:
        with contextlib.redirect_stdout(output), pytest.raises(SystemExit):
            benchmarks_cli.main([command, "--help"])
    return output.getvalue()


def test_the_table_of_presets_of_medmoe_is_that_of_the_code() -> None:
    rows = [line.strip("| ").split(" | ") for line in (ROOT / "docs/medmoe.md").read_text().splitlines()]
    cells = {row[0]: row[1:] for row in rows if len(row) == 4}
    for column, name in enumerate(("tiny", "paper", "release")):
        preset = medmoe_presets.PRESETS[name]()
        model, settings = preset.model, preset.train
        assert f"`{model.image_encoder}`" in cells["image encoder"][column]
        assert f"{model.image_size} px" in cells["image encoder"][column]
        expected = {
            "experts K, their width, convolutions": f"{model.num_experts}, {model.expert_dim}, {model.expert_depth}",
            "words compete for a region": ("yes" if model.word_softmax and settings.local_form == "batch" else "no"),
            "norm of the experts": model.expert_norm,
            "common width": f"{model.dim}",
            "longest text, in tokens": f"{model.text_tokens}",
            "routed on": model.route_on,
            "temperatures": ", ".join(f"{t:g}" for t in model.temperatures),
            "global loss": settings.global_directions,
            "local loss": f"{settings.local_form}, {settings.word_aggregation}",
            "weights: global, local, router": ", ".join(
                f"{w:g}" for w in (settings.global_weight, settings.local_weight, settings.router_weight)
            ),
            "epochs, batch, accumulated": f"{settings.epochs}, {settings.batch_size}, {settings.accumulate}",
            "optimiser": f"{settings.optimizer}, {settings.lr:g}",
            "gradient clipped at": f"{settings.clip_norm:g}",
            "devices, precision": f"{settings.devices}, {settings.precision}",
        }
        for row, value in expected.items():
            assert cells[row][column] == value, f"{name}: {row}"


def test_the_table_of_presets_is_that_of_the_code() -> None:
    rows = [line.strip("| ").split(" | ") for line in (ROOT / "docs/medvlmoe.md").read_text().splitlines()]
    cells = {row[0]: row[1:] for row in rows if len(row) == 3}
    for column, preset in enumerate((tiny(), paper())):
        model, settings = preset.model, preset.train
        values = [cells[name][column] for name in ("common width d", "experts, top k, hidden width", "epochs, warm-up")]
        assert values == [
            f"{model.dim}",
            f"{model.num_experts}, {model.top_k}, {model.expert_hidden_dim}",
            f"{settings.epochs}, {settings.warmup_epochs}",
        ]
        rates = [float(rate) for rate in cells["learning rates: encoders, rest"][column].split(", ")]
        assert rates == [settings.lr_encoder, settings.lr_head]
        assert float(cells["weight decay"][column]) == settings.weight_decay
        assert cells["seeds"][column] == ", ".join(map(str, preset.seeds))
        assert f"`{model.image_encoder}`" in cells["image encoder"][column]
        assert f"{model.image_size} px" in cells["image encoder"][column]
