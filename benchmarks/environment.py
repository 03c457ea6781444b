"""What was measured on what: device, versions, commit, command."""

import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parent
UNKNOWN = "unknown"
"""Commit of a folder without git."""
PACKAGES = (
    "torch",
    "triton",
    "transformers",
    "liger-kernel",
    "scattermoe",
    "megablocks",
    "grouped-gemm",
    "sonicmoe",
    "tutel",
    "st-moe-pytorch",
)


def environment(device: torch.device) -> dict[str, Any]:
    """Returns what every record of a run has in common; json values only."""
    commit, dirty = commit_of(HERE)
    return {
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "commit": commit,
        "dirty": dirty,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "command": command(),
    }


def device_name(device: torch.device) -> str:
    """Returns the name of a GPU, or of the processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Versions of all that is compared, as far as it is installed."""
    import moekit

    installed = {"python": platform.python_version(), "moekit": moekit.__version__}
    for package in PACKAGES:
        try:
            installed[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return installed


def commit_of(folder: Path) -> tuple[str, bool]:
    """Returns the commit that is checked out, and whether the code differs from it; without git, unknown and True."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        commit = git("rev-parse", "--short", "HEAD")
        changed = git("status", "--porcelain", "--", ":/moekit", ":/kernels", ":(top,glob)benchmarks/**/*.py")
    except (OSError, subprocess.CalledProcessError):
        return UNKNOWN, True
    return commit, bool(changed)


def command() -> str:
    """Returns the command line, with the module's name in place of its path."""
    script = Path(sys.argv[0])
    module = script.parent.name if script.stem == "__main__" else f"{script.parent.name}.{script.stem}"
    name = f"python -m {module}" if script.suffix == ".py" else script.name
    settings = [f"{key}={os.environ[key]}" for key in ("OMP_NUM_THREADS",) if key in os.environ]
    return " ".join((*settings, name, *map(shlex.quote, sys.argv[1:])))
