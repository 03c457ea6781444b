"""What the wheel and the source archive hold, built from a copy of the tree."""

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import moekit

ROOT = Path(__file__).parent.parent
DIST_INFO = f"moekit-{moekit.__version__}.dist-info"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tree = tmp_path_factory.mktemp("tree") / "moekit"
    ignored = shutil.ignore_patterns(".*", "runs", "dist", "__pycache__", "node_modules", "*.egg-info")
    shutil.copytree(ROOT, tree, ignore=ignored)
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-t", "sdist"],
        cwd=tree,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return tree / "dist"


def test_the_wheel_installs_two_packages_and_no_other_name(built: Path):
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.partition("/")[0] for name in names} == {"moekit", "moekit_kernels", DIST_INFO}
    assert "moekit/py.typed" in names
    assert {f"moekit/inspect/assets/{name}" for name in ("page.html", "page.css", "page.js", "drawing.js")} <= set(
        names
    )
    assert "moekit_kernels/moe_ffn/op.py" in names
    assert f"{DIST_INFO}/licenses/LICENSE" in names


def test_every_module_is_in_the_wheel(built: Path):
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if name.endswith(".py")}
    here = {p.relative_to(ROOT).as_posix() for p in (ROOT / "moekit").rglob("*.py")}
    here |= {p.relative_to(ROOT / "kernels").as_posix() for p in (ROOT / "kernels").rglob("*.py")}
    assert packed == here


def test_the_source_archive_holds_the_library_alone(built: Path):
    (archive_path,) = built.glob("*.tar.gz")
    with tarfile.open(archive_path) as archive:
        names = [name.partition("/")[2] for name in archive.getnames()]
    tops = {name.partition("/")[0] for name in names}
    assert tops.isdisjoint({"recipes", "tests", "benchmarks", "docs", "runs"})
    assert {"moekit", "kernels", "LICENSE", "README.md", "pyproject.toml"} <= tops
    assert "kernels/moekit_kernels/moe_ffn/op.py" in names
