"""Options that commands share, so that each is spelled, and means, the same everywhere."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.shapes import DTYPES


class OptionError(ValueError):
    """Raised for options that do not go together; the message names the remedy."""


def add_device(parser: argparse.ArgumentParser) -> None:
    """Adds ``--device``: the GPU where there is one."""
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")


def add_dtype(
    parser: argparse.ArgumentParser, default: str | None = None, choices: Sequence[str] = tuple(DTYPES)
) -> None:
    """Adds ``--dtype``: bf16 on a GPU and fp32 elsewhere, unless there is another default."""
    on_gpu = torch.cuda.is_available()
    parser.add_argument("--dtype", default=default or ("bf16" if on_gpu else "fp32"), choices=list(choices))


def add_seconds(parser: argparse.ArgumentParser, default: float) -> None:
    """Adds ``--seconds``: how long one measurement is repeated."""
    parser.add_argument("--seconds", type=float, default=default, help="about how long each measurement is repeated")


def add_processor_time(parser: argparse.ArgumentParser) -> None:
    """Adds ``--processor-time``: which clock."""
    parser.add_argument(
        "--processor-time",
        action="store_true",
        help="on CPU, count the time of the processor in place of the clock's: for a machine that does other work",
    )


def add_budget(parser: argparse.ArgumentParser, default: float) -> None:
    """Adds ``--budget``: how long the command may take."""
    parser.add_argument("--budget", type=float, default=default, help="seconds for the whole command")


def add_out(parser: argparse.ArgumentParser, what: str, required: bool = False) -> None:
    """Adds ``--out``: where the result goes."""
    parser.add_argument("--out", type=Path, required=required, help=what)
