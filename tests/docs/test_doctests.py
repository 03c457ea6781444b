"""Every example in a docstring runs and gives the result that it states."""

import doctest
import importlib
from pathlib import Path

import pytest
import torch
from torch import nn

import moekit

ROOT = Path(__file__).parents[2]
SOURCES = {"moekit": ROOT, "kernels/moekit_kernels": ROOT / "kernels", "recipes": ROOT}
# What an example may use without importing it.
KNOWN = {"torch": torch, "nn": nn} | {name: getattr(moekit, name) for name in moekit.__all__}
FLAGS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


def modules_with_examples() -> list[str]:
    """Names of the modules whose text holds a prompt; nothing is imported to find them."""
    names = []
    for folder, root in SOURCES.items():
        for file in sorted((ROOT / folder).rglob("*.py")):
            if ">>> " in file.read_text(encoding="utf-8"):
                parts = file.relative_to(root).with_suffix("").parts
                names.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return names


def test_there_are_examples() -> None:
    assert len(modules_with_examples()) > 10


@pytest.mark.parametrize("name", modules_with_examples())
def test_docstring_examples(name: str) -> None:
    module = importlib.import_module(name)
    runner = doctest.DocTestRunner(optionflags=FLAGS)
    messages: list[str] = []
    for example in doctest.DocTestFinder(exclude_empty=True).find(module, name, globs={**KNOWN, **vars(module)}):
        torch.manual_seed(0)
        runner.run(example, out=messages.append)
    assert runner.tries > 0
    assert runner.failures == 0, "".join(messages)
