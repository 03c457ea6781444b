"""``python -m benchmarks train-step``: a real training step of a recipe with random weights, and its memory.

The default is MedVLMoE's preset ``paper`` (ViT-L/14, BioGPT, d=512): on CPU one step of two studies with activation
checkpointing, in fp32, which needs about 13 GB and some minutes on one core; on a GPU twenty steps of 32 studies in
mixed fp16, after five. With ``--recipe medmoe`` it is MedMoE's (Swin-T, Bio_ClinicalBERT, six experts). Nothing is
loaded or downloaded. Adds a line to ``benchmarks/results/train-step/records.jsonl`` and writes the page beside it.
"""

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.environment import environment
from benchmarks.options import OptionError, add_device, add_out
from recipes.medmoe.presets import PRESETS as MEDMOE
from recipes.medvlmoe.presets import PRESETS as MEDVLMOE

FOLDER = Path(__file__).parents[1] / "results" / "train-step"
ON_CPU = {"batch_size": 2, "steps": 1, "warm_up": 0, "precision": "32-true"}
ON_GPU = {"batch_size": 32, "steps": 20, "warm_up": 5, "precision": "16-mixed"}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this command."""
    add_device(parser)
    parser.add_argument("--recipe", choices=("medvlmoe", "medmoe"), default="medvlmoe", help="which recipe")
    parser.add_argument("--preset", choices=("paper", "tiny"), default="paper", help="sizes of the model")
    parser.add_argument("--batch-size", type=int, help="samples of a step; 2 on CPU and 32 on a GPU by default")
    parser.add_argument("--steps", type=int, help="timed steps; 1 on CPU and 20 on a GPU by default")
    parser.add_argument("--warm-up", type=int, help="steps before; 0 on CPU and 5 on a GPU by default")
    parser.add_argument(
        "--precision",
        choices=("32-true", "16-mixed", "bf16-mixed"),
        help="32-true on CPU and 16-mixed on a GPU by default",
    )
    parser.add_argument(
        "--activation-checkpointing",
        action=argparse.BooleanOptionalAction,
        help="compute activations again in backward; on CPU by default",
    )
    parser.add_argument("--compile", action="store_true", help="compile what the recipes compile")
    add_out(parser, "folder of records and page, in place of the committed one")


def main(options: argparse.Namespace) -> int:
    """Measures and writes."""
    from benchmarks.train_step import medmoe, medvlmoe
    from benchmarks.train_step.measure import step_cost

    presets, parts_of = {"medvlmoe": (MEDVLMOE, medvlmoe.step_parts), "medmoe": (MEDMOE, medmoe.step_parts)}[
        options.recipe
    ]
    defaults = ON_CPU if options.device == "cpu" else ON_GPU
    asked = {name: getattr(options, name) for name in defaults}
    chosen: dict[str, Any] = {name: defaults[name] if value is None else value for name, value in asked.items()}
    for name in ("batch_size", "steps"):
        if chosen[name] < 1:
            raise OptionError(f"--{name.replace('_', '-')} must be at least 1, got {chosen[name]}")
    checkpointing = options.activation_checkpointing
    if checkpointing is None:
        checkpointing = options.device == "cpu"
    config = presets[options.preset]()
    train = replace(
        config.train,
        precision=chosen.pop("precision"),
        activation_checkpointing=checkpointing,
        compile=options.compile,
        batch_norm="frozen" if checkpointing else config.train.batch_norm,
    )
    cost = step_cost(parts_of, replace(config, train=train), device=options.device, **chosen)
    record = {
        "recipe": options.recipe,
        "preset": options.preset,
        "device": options.device,
        "batch_size": chosen["batch_size"],
        "precision": train.precision,
        "activation_checkpointing": checkpointing,
        "compile": options.compile,
        "environment": environment(torch.device(options.device)),
        **cost._asdict(),
    }
    folder: Path = options.out or FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "records.jsonl").open("a") as file:
        file.write(json.dumps(record) + "\n")
    records = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    (folder / "README.md").write_text(page(records))
    print((folder / "README.md").read_text())
    return 0


def page(records: Sequence[Mapping[str, Any]]) -> str:
    """Returns the page as markdown: one row for each record."""
    lines = [
        "# Training steps",
        "",
        "A training step (forward, backward, clipping, the recipe's optimiser) with random weights and drawn tensors:",
        "every text as long as texts may be. Written by `python -m benchmarks train-step`. Memory is the peak of the",
        "GPU, or of the whole process; the MoE layer's share is its forward and backward by itself, over the step.",
        "",
        "| device | recipe | preset | parameters, M | batch | precision | checkpointing | compiled | s a step "
        "| samples/s | MoE layer | peak, GB |",
        "|---|---|---|---:|---:|---|---|---|---:|---:|---:|---:|",
    ]
    lines += [_row(record) for record in records]
    if not any(record["device"] == "cuda" for record in records):
        lines += ["", "Not measured on a GPU."]
    lines += [""]
    lines += [
        f"- {record['environment']['device']}, {record['environment']['threads']} thread(s): "
        f"`{record['environment']['command']}`, torch {record['environment']['versions']['torch']}, commit "
        f"{record['environment']['commit']}, {record['environment']['date']}."
        for record in records
    ]
    return "\n".join(lines) + "\n"


def _row(record: Mapping[str, Any]) -> str:
    seconds = statistics.median(record["seconds"])
    cells = (
        record["environment"]["device"],
        record.get("recipe", "medvlmoe"),
        record["preset"],
        f"{record['parameters'] / 1e6:.1f}",
        record["batch_size"],
        record["precision"],
        "yes" if record["activation_checkpointing"] else "no",
        "yes" if record["compile"] else "no",
        f"{seconds:.3g}",
        f"{record['batch_size'] / seconds:.3g}",
        f"{record['moe_seconds'] / seconds:.1%}",
        f"{record['peak_bytes'] / 1e9:.2f}",
    )
    return f"| {' | '.join(map(str, cells))} |"
