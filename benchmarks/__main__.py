"""``python -m benchmarks COMMAND``: everything that is measured, behind one command line.

Each command is a module with ``add_options(parser)`` and ``main(options)``, which returns the exit status. Only the
module of the command that was named is imported, so that one that needs Triton does not stop the others.
"""

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from benchmarks.options import OptionError


class Command(NamedTuple):
    """One command.

    Attributes:
        module: Where its ``add_options`` and ``main`` are.
        summary: What it does, in a line.
    """

    module: str
    summary: str


COMMANDS = {
    "moe": Command("benchmarks.moe", "time MoE layers of this and other libraries, and the parts of ours"),
    "cross-scale": Command("benchmarks.cross_scale", "time hard routing of cross-scale experts"),
    "local-contrastive": Command("benchmarks.local_contrastive", "memory and time of the local contrastive loss"),
    "fine-tuning": Command("benchmarks.fine_tuning", "ways to fine-tune experts, and experts in int8"),
    "compare": Command("benchmarks.compare", "compare two files of records; status 1 if anything became slower"),
    "report": Command("benchmarks.report", "write the tables and pictures of benchmarks/README.md from records"),
    "compiled": Command("benchmarks.compiled.command", "compile every kernel without a GPU and read its code"),
    "curves": Command("benchmarks.curves", "how time and memory grow with tokens, experts, top-k and skew"),
    "host": Command("benchmarks.host.command", "launches and host time of a step, on a driver that starts nothing"),
    "families": Command(
        "benchmarks.families.command", "blocks and experts of every family of transformers, compared to eager"
    ),
    "balance": Command(
        "benchmarks.balance.command", "train a small GPT with and without balancing, and draw the load of its experts"
    ),
    "experts-alive": Command(
        "benchmarks.experts_alive.command", "which experts of MedVLMoE live on small real sets; paired with before"
    ),
    "experts-help": Command(
        "benchmarks.experts_help.command", "MedVLMoE with and without experts, by how often signatures conflict"
    ),
    "gpu": Command("benchmarks.gpu.command", "on a GPU: checks, timings and verdicts in 5 minutes"),
    "inputs": Command(
        "benchmarks.inputs.command", "tables of 400,000 rows, and images per second of the input pipeline"
    ),
    "train-step": Command(
        "benchmarks.train_step.command", "a training step of MedVLMoE at the paper's size: time, memory, the MoE layer"
    ),
    "scale": Command("benchmarks.scale.command", "compute what dividing experts among up to 10,000 GPUs would cost"),
    "scale-steps": Command(
        "benchmarks.scale.steps", "time steps of the language model of the examples on 1, 2 and 4 processes"
    ),
    "placement": Command(
        "benchmarks.placement.command", "how even ranks would be with experts placed by their past loads, simulated"
    ),
    "tune": Command("benchmarks.tune", "on a GPU: search for better tiles of the GEMM kernels"),
}
"""Every command by its name."""


def parse(arguments: Sequence[str] | None = None) -> tuple[argparse.Namespace, Any]:
    """Returns the options of a command line, and the module of its command."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Speed, memory and compiled code.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    module: Any = None
    for name, (module_name, summary) in COMMANDS.items():
        chosen = words[:1] == [name]
        loaded = importlib.import_module(module_name) if chosen else None
        command = commands.add_parser(
            name,
            help=summary,
            description=None if loaded is None else loaded.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if loaded is not None:
            loaded.add_options(command)
            module = loaded
    return parser.parse_args(words), module


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit status; a mistake in its options is printed without a traceback."""
    options, module = parse(arguments)
    try:
        return module.main(options)
    except OptionError as error:
        print(f"python -m benchmarks {options.command}: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
