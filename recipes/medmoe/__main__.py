"""The command line: ``python -m recipes.medmoe STAGE``, from ``pretrain`` to ``segment``."""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import tyro

from recipes.medmoe.config import Config
from recipes.medmoe.hints import next_command
from recipes.medmoe.presets import PRESETS
from recipes.shared.cli import parse_preset, run_stage

_ABOUT = {
    "pretrain": "Pretrain a run (or one per seed) into a folder.",
    "zero-shot": "Classify labelled sets by their class names alone.",
    "probe": "Fit linear classifiers on frozen features, with 1, 10 and 100 % of the training set.",
    "retrieve": "Find reports by image and images by report.",
    "flops": "Count parameters and operations of a preset.",
    "table1": "Zero-shot accuracy of models by sets: the paper's Table 1.",
    "table2": "Linear probes by share of the training set: the paper's Table 2.",
    "table3": "Count parameters and operations beside the baselines: the paper's Table 3.",
    "figure3": "Word maps, hit rates and routing of models: the paper's Figure 3.",
    "explain": "Draw word maps, scale weights and experts; play the pointing game.",
    "report": "Draw report.html from a run.",
    "classify": "Classify images of your own by the names of classes.",
    "embed": "Write embeddings of images of your own, as an index to search.",
    "search": "Find images in an index by text or by image.",
    "few-shot": "Fit classifiers on a few labelled images of each class.",
    "segment": "Draw the region of a finding from its word map; score it where boxes are known.",
}
_MODULE = "recipes.medmoe"


def main(arguments: list[str]) -> None:
    """Runs one stage."""
    stages = {
        "pretrain": _pretrain,
        "zero-shot": _zero_shot,
        "probe": _probe,
        "retrieve": _retrieve,
        "flops": _flops,
        "table1": partial(_sweep, "table1"),
        "table2": partial(_sweep, "table2"),
        "table3": _table3,
        "figure3": partial(_sweep, "figure3"),
        "explain": _explain,
        "report": _report,
        "classify": _classify,
        "embed": _embed,
        "search": _search,
        "few-shot": _few_shot,
        "segment": _segment,
    }
    run_stage(_MODULE, stages, _ABOUT, arguments)


def parse_pretrain(arguments: list[str]) -> Config:
    """Parses the settings of ``pretrain``: the preset's, with what the arguments change."""
    return parse_preset(Config, PRESETS, arguments, prog=f"python -m {_MODULE} pretrain", about=_ABOUT["pretrain"])


def _pretrain(arguments: list[str]) -> None:
    config = parse_pretrain(arguments)
    from recipes.data.arguments import spelled
    from recipes.data.verify import bad_images_named
    from recipes.medmoe.data.sources import SPELLING
    from recipes.medmoe.inference.near_duplicates import keep_prints
    from recipes.medmoe.pretrain import stage as pretrain
    from recipes.medmoe.pretrain.summary import summarise
    from recipes.shared.training import is_main_process

    with spelled(SPELLING), bad_images_named():
        runs = pretrain.main(config)
    for run in runs if is_main_process() else ():
        print(summarise(run))
        keep_prints(run)
        print(f"pretrained: {run}")
        print(next_command(run, "pretrain", data=config.data.data))


def _zero_shot(arguments: list[str]) -> None:
    from recipes.medmoe.zero_shot import stage as zero_shot

    _call(zero_shot.main, "zero-shot", arguments)


def _probe(arguments: list[str]) -> None:
    from recipes.medmoe.probe import stage as probe

    _call(probe.main, "probe", arguments)


def _retrieve(arguments: list[str]) -> None:
    from recipes.medmoe import retrieve

    _call(retrieve.main, "retrieve", arguments)


def _flops(arguments: list[str]) -> None:
    from recipes.medmoe.flops import stage as flops

    _call(flops.main, "flops", arguments)


def _sweep(name: str, arguments: list[str]) -> None:
    from recipes.medmoe.tables.command import run_command

    run_command(name, arguments, parse_pretrain)


def _table3(arguments: list[str]) -> None:
    from recipes.medmoe.flops import table3

    _call(table3.main, "table3", arguments, positional=False)


def _explain(arguments: list[str]) -> None:
    from recipes.medmoe.explain import stage as explain

    _call(explain.main, "explain", arguments)


def _report(arguments: list[str]) -> None:
    def report(run: tyro.conf.Positional[Path]) -> None:
        """Draw report.html from what lies in a run's folder.

        Args:
            run: Folder of the run.
        """
        from recipes.medmoe.report import write_report

        print(f"open {write_report(run)}")

    tyro.cli(report, args=arguments, prog=f"python -m {_MODULE} report")


def _classify(arguments: list[str]) -> None:
    from recipes.medmoe.use import classify

    _call(classify.main, "classify", arguments)


def _embed(arguments: list[str]) -> None:
    from recipes.medmoe.use import embed

    _call(embed.main, "embed", arguments)


def _search(arguments: list[str]) -> None:
    from recipes.medmoe.use import search

    _call(search.main, "search", arguments)


def _few_shot(arguments: list[str]) -> None:
    from recipes.medmoe.few_shot import stage as few_shot

    _call(few_shot.main, "few-shot", arguments)


def _segment(arguments: list[str]) -> None:
    from recipes.medmoe.segment import stage as segment

    _call(segment.main, "segment", arguments)


def _call(stage: Callable[..., Any], name: str, arguments: list[str], *, positional: bool = True) -> None:
    """Runs a stage whose options are the arguments of its function; those without a default may have no dashes."""
    tyro.cli(
        stage,
        args=arguments,
        prog=f"python -m {_MODULE} {name}",
        description=_ABOUT[name],
        config=(tyro.conf.PositionalRequiredArgs,) if positional else (),
    )


if __name__ == "__main__":
    main(sys.argv[1:])
