"""What ``import moekit`` costs, what it pulls in, and what it does without."""

import inspect
import json
import os
import re
import subprocess
import sys
import time
import typing
from pathlib import Path

import pytest
import torch

import moekit
from moekit import activations as public_activations
from moekit import distributed as public_distributed
from moekit import inspect as public_inspect
from moekit import interop as public_interop
from moekit import lora as public_lora
from moekit import quantization as public_quantization
from moekit.interop import hub as public_hub

ROOT = Path(__file__).parent.parent
HEAVY = (
    "peft",
    "timm",
    "transformers",
    "lightning",
    "matplotlib",
    "pandas",
    "sklearn",
    "pydicom",
    "medmnist",
    "onnx",
    "onnxscript",
    "huggingface_hub",
    "safetensors",
    "tensorboard",
    "wandb",
)


def _python(code: str) -> str:
    paths = f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'kernels')!r}]\n"
    done = subprocess.run([sys.executable, "-c", paths + code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _seconds(code: str) -> float:
    start = time.perf_counter()
    _python(code)
    return time.perf_counter() - start


@pytest.mark.slow
def test_importing_costs_little_more_than_torch():
    # Alternately, so that a busy machine slows both; the best of each is the least disturbed.
    pairs = [(_seconds("import torch"), _seconds("import moekit")) for _ in range(3)]
    torch_seconds, moekit_seconds = (min(column) for column in zip(*pairs, strict=True))
    assert moekit_seconds < 1.5 * torch_seconds


def test_importing_pulls_in_nothing_heavy():
    code = f"""
import torch
before = set(sys.modules)
import moekit, moekit.inspect, moekit.interop, moekit.lora, moekit.quantization
new = {{name.partition('.')[0] for name in set(sys.modules) - before}}
print(sorted(new & {{'triton', *{HEAVY!r}}}))
"""
    assert _python(code).strip() == "[]"


# What says what to install where a package is absent, and what it says.
USES = {
    "triton": [("moekit.SparseMoE.ffn(8, 6, 4, 2, impl='triton')(torch.randn(5, 8))", "pip install triton")],
    "transformers": [
        ("moekit.interop.register_experts()", "register_experts needs transformers 5.7 or newer: pip install"),
        (
            "moekit.interop.fused_activation(torch.nn.Linear(1, 1))",
            "needs transformers .*: pip install",
        ),
    ],
    "matplotlib": [("record.figure()", "needs matplotlib, which is not installed: pip install matplotlib")],
    "huggingface_hub": [("import moekit.interop.hub", r'needs huggingface_hub: pip install "moekit\[hub\]"')],
    "safetensors": [
        ("import moekit.interop.hub", r'needs safetensors: pip install "moekit\[hub\]"'),
        ("checkpoint()", "needs safetensors, which is not installed: pip install safetensors"),
    ],
    "onnx": [("translations()", r'translation_table needs onnxscript: pip install "moekit\[onnx\]"')],
    "onnxscript": [("translations()", r'translation_table needs onnxscript: pip install "moekit\[onnx\]"')],
    "xformers": [("xformers()", "needs the package xformers, .*`pip install xformers`")],
    "timm": [],
    "peft": [],
    "lightning": [],
    "tensorboard": [],
    "wandb": [],
}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="each case is a fork of one process that has imported torch")
def test_without_each_optional_package_all_else_works_and_its_use_says_what_to_install():
    """In a process for each package: everything is imported, a layer trains and is recorded."""
    codes = {package: [code for code, _ in uses] for package, uses in USES.items()}
    script = Path(__file__).parent / "without_packages.py"
    lines = _python(f"sys.argv = ['', {json.dumps(codes)!r}]\n{script.read_text()}").splitlines()
    expected = [(package, code, message) for package, uses in USES.items() for code, message in uses]
    for line, (package, code, message) in zip(lines, expected, strict=True):
        *use, text = json.loads(line)
        assert use == [package, code]
        assert re.search(message, text), line


def _api_entries() -> list[str]:
    pages = (ROOT / "docs" / "api").glob("*.md")
    entries = [line.split()[1] for page in pages for line in page.read_text().splitlines() if line.startswith(":::")]
    return [entry for entry in entries if entry.split(".")[0] == "moekit"]


def test_public_names_are_those_of_the_packages_and_of_the_api_pages():
    """The rule of the docstring of ``moekit``."""
    public = [name for name in moekit.__all__ if name != "__version__"]
    assert len(set(public)) == len(public)
    for package in (moekit.contrastive, moekit.experts, moekit.fusion, moekit.routers):
        assert set(package.__all__) <= set(public), package.__name__
        assert all(getattr(package, name) is getattr(moekit, name) for name in package.__all__)
    interop = {f"moekit.interop.{name}" for name in public_interop.__all__} | {"moekit.interop.onnx.translation_table"}
    activations = {f"moekit.activations.{name}" for name in public_activations.__all__}
    inspecting = {f"moekit.inspect.{name}" for name in public_inspect.__all__}
    lora = {f"moekit.lora.{name}" for name in public_lora.__all__}
    quantization = {f"moekit.quantization.{name}" for name in public_quantization.__all__}
    files = {f"moekit.interop.hub.{name}" for name in public_hub.__all__}
    distributed = {f"moekit.distributed.{name}" for name in public_distributed.__all__}
    elsewhere = interop | activations | inspecting | lora | quantization | files | distributed
    assert sorted(_api_entries()) == sorted({f"moekit.{name}" for name in public} | elsewhere)
    assert moekit.__version__.count(".") == 2


def _named_types(annotation: object) -> set[type]:
    """The classes of the package in an annotation."""
    if isinstance(annotation, type) and annotation.__module__.split(".")[0] == "moekit":
        return {annotation}
    return set().union(*(_named_types(each) for each in typing.get_args(annotation)), set())


def test_what_public_functions_return_and_public_results_hold_is_public():
    for name in moekit.__all__:
        value = getattr(moekit, name)
        if inspect.isfunction(value):
            types = _named_types(typing.get_type_hints(value)["return"])
        elif isinstance(value, type) and issubclass(value, torch.nn.Module):
            types = _named_types(typing.get_type_hints(value.forward)["return"])
        elif isinstance(value, type) and issubclass(value, tuple):
            types = set().union(*(_named_types(each) for each in typing.get_type_hints(value).values()))
        else:
            continue
        missing = {each.__name__ for each in types} - set(moekit.__all__)
        assert not missing, (name, missing)


def test_every_public_name_is_documented():
    for name in moekit.__all__:
        value = getattr(moekit, name)
        if inspect.isfunction(value) or inspect.isclass(value):
            assert inspect.getdoc(value), name
