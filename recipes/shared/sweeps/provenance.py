"""Where a figure comes from: the code's commit, and checksums of settings, data and files."""

import hashlib
import json
import subprocess
from pathlib import Path
from typing import Any

from recipes.shared.fingerprint import FILE as DATA_FILE

UNKNOWN = "unknown"
_ROOT = Path(__file__).resolve().parents[3]
_DIGITS = 16


def checksum(value: Any) -> str:
    """Returns a checksum of plain settings, whatever the order of their fields.

    Args:
        value: What json can hold; paths count as their text.
    """
    text = json.dumps(value, sort_keys=True, default=str, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]


def file_checksum(path: Path) -> str | None:
    """Returns a checksum of a file, ``None`` if there is none."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:_DIGITS]


def data_checksum(run: Path) -> str | None:
    """Returns a checksum of the ids, groups, labels and texts that a run was trained on, ``None`` if it kept none."""
    return file_checksum(run / DATA_FILE)


def commit_of_code() -> str:
    """Returns the commit of the code, with ``+changes`` where files differ from it; without git, unknown."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=_ROOT, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        commit = git("rev-parse", "--short=10", "HEAD")
        changed = git("status", "--porcelain", "--", "moekit", "kernels", "recipes")
    except (OSError, subprocess.CalledProcessError):
        return UNKNOWN
    return f"{commit}+changes" if changed else commit
