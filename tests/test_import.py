"""What ``import moekit`` costs, what it pulls in, and what it does without."""

import inspect
import subprocess
import sys
import time
import typing
from pathlib import Path

import pytest
import torch

import moekit
from moekit import activations as public_activations
from moekit import inspect as public_inspect
from moekit import interop as public_interop
from moekit import lora as public_lora

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
import moekit, moekit.inspect, moekit.interop, moekit.lora
new = {{name.partition('.')[0] for name in set(sys.modules) - before}}
print(sorted(new & {{'triton', *{HEAVY!r}}}))
"""
    assert _python(code).strip() == "[]"


def test_everything_works_without_triton():
    code = """
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] == 'triton':
            raise ModuleNotFoundError(f'No module named {name!r}', name=name)

sys.meta_path.insert(0, Absent())
import torch, moekit
output, stats = moekit.SparseMoE.ffn(8, 6, 4, 2)(torch.randn(5, 8))
output.sum().backward()
print(bool(output.isfinite().all()), stats.tokens_per_expert.sum().item(), 'triton' in sys.modules)
"""
    assert _python(code).split() == ["True", "10", "False"]


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
    elsewhere = interop | activations | inspecting | lora
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
