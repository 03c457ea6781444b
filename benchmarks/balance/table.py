"""The page of the trainings: settings, a table of loss and balance over the steps, and the pictures."""

import re
import statistics
import textwrap
from collections.abc import Sequence
from pathlib import Path

from benchmarks.balance.figures import WIDTH
from benchmarks.balance.pictures import Run, draw_figures, draw_loads, mean_of_layers
from benchmarks.balance.train import METHODS

_TITLE = """\
A GPT of {num_layers} blocks, each with {num_experts} experts of which a token takes {top_k} (sigmoid scores, width
{dim}, hidden width of an expert {hidden_dim}, {millions:.1f} million parameters), learns to predict the next byte of
the help topics of `pydoc`, {bytes:,} bytes that ship with Python; the last tenth is kept for validation. {steps} steps
of {batch_size} sequences of {context} bytes, AdamW with a learning rate of {learning_rate:g}. Methods of one seed start
from the same weights and see the same batches. Written by `python -m benchmarks balance`."""
_MEANING = """\
Mean over the seeds ± standard deviation. Balance is that of single steps, a mean over the layers and the last {width}
steps; max / mean is the largest load of an expert over the mean load (1 at balance, {worst:g} where all tokens take one
expert), *worst layer* the largest of the layers after the last step, *dead* the experts of a layer without any token in
a step, *confidence* the mean of the largest normalised score of a token."""


def write_page(runs: Sequence[Run], path: Path) -> None:
    """Writes the page, and the pictures beside it."""
    about, config = runs[0]["environment"], runs[0]["config"]
    seeds = sorted({run["seed"] for run in runs})
    seconds = [run["seconds"] for run in runs]
    versions = ", ".join(f"{name} {about['versions'][name]}" for name in ("python", "torch"))
    pictures = [
        (draw_figures(runs, path.with_name("figures.svg")), "Loss and balance over the steps."),
        (draw_loads(runs, path.with_name("loads.svg")), "Load of the experts of the last layer over the steps."),
    ]
    lines = [
        "# Balance of a small GPT",
        "",
        _filled(_TITLE.format(**config, **config["model"], millions=config["parameters"] / 1e6)),
        "",
        _filled(
            f"{about['device']}, threads: {about['threads']}; {versions}; commit {about['commit']}, {about['date']}; "
            f"seeds {', '.join(map(str, seeds))}; {min(seconds):.0f} to {max(seconds):.0f} s of the clock for each."
        ),
        "",
        *(f"![{text}]({picture.name})\n" for picture, text in pictures),
        _filled(_MEANING.format(width=WIDTH, worst=config["model"]["num_experts"] / config["model"]["top_k"])),
        "",
        *_table(runs, config["steps"]),
        "",
        f"What `print(record)` says of the whole training with seed {seeds[0]}:",
        "",
        "```text",
        *_findings(runs, seeds[0]),
        "```",
    ]
    path.write_text("\n".join(lines) + "\n")


def _table(runs: Sequence[Run], steps: int) -> list[str]:
    places = [step for step in (50, 100, 200) if step < steps] + [steps]
    headers = [
        "",
        "validation loss",
        *(f"max / mean, step {step}" for step in places),
        "worst layer",
        "entropy of the load",
    ]
    headers += ["confidence", *(f"dead, step {step}" for step in (places[0], steps))]
    lines = [f"| {' | '.join(headers)} |", f"|---|{'---:|' * (len(headers) - 1)}"]
    for method, (title, *_) in METHODS.items():
        own = [run for run in runs if run["method"] == method]
        if not own:
            continue
        cells = [title, _shown([run["validation_loss"] for run in own], 3)]
        cells += [_shown([1 + _at(run, "max_violation", step) for run in own], 2) for step in places]
        cells.append(_shown([1 + max(each["max_violation"][-1] for each in run["layers"].values()) for run in own], 2))
        cells += [_shown([_at(run, name, steps) for run in own], 3) for name in ("load_entropy", "confidence")]
        cells += [_shown([_at(run, "dead_experts", step) for run in own], 1) for step in (places[0], steps)]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _findings(runs: Sequence[Run], seed: int) -> list[str]:
    own = [run for run in runs if run["seed"] == seed]
    lines = [line for run in own for line in ("", f"{METHODS[run['method']].title}:", *run["findings"])]
    return lines[1:]


def _at(run: Run, figure: str, step: int) -> float:
    """Returns the mean over the layers of a figure, in the steps before ``step``."""
    return mean_of_layers(figure)(run)[(step - 1) // WIDTH]


def _shown(values: Sequence[float], digits: int) -> str:
    """Returns mean ± standard deviation over the seeds."""
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def _filled(text: str) -> str:
    """Returns text in lines; code is not broken."""
    whole = re.sub("`[^`]*`", lambda code: code[0].replace(" ", "\0"), text)
    return textwrap.fill(whole, 120, break_long_words=False, break_on_hyphens=False).replace("\0", " ")
