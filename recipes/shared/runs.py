"""A run is a folder: what is in it, and how it is written."""

import json
import platform
import resource
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def write_json(path: Path, value: Any) -> None:
    """Writes strict json (no NaN) in one step, so a killed process leaves the old file or the new one."""
    text = json.dumps(value, indent=2, allow_nan=False, default=_plain) + "\n"
    part = path.with_suffix(path.suffix + ".part")
    part.write_text(text)
    part.replace(path)


def read_json(path: Path) -> Any:
    """Reads a json file of a run.

    Raises:
        ValueError: If the file is missing, empty, cut off or no json; the message names it.
    """
    if not path.is_file():
        raise ValueError(f"{path} does not exist: is {path.parent} the folder of a finished run?")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        what = "is empty" if not path.stat().st_size else f"is no json ({error})"
        raise ValueError(f"{path} {what}: run the stage that writes it again, or restore the file.") from error


def read_object(path: Path, keys: Iterable[str] = ()) -> dict[str, Any]:
    """Reads a json object of a run.

    Args:
        path: The file.
        keys: Fields that it must have.

    Raises:
        ValueError: As for :func:`read_json`, or if the file holds no object or lacks a field.
    """
    value = read_json(path)
    missing = [key for key in keys if key not in value] if isinstance(value, dict) else []
    if not isinstance(value, dict) or missing:
        got = f"lacks {', '.join(missing)}" if missing else f"holds a {type(value).__name__} instead of an object"
        raise ValueError(f"{path} {got}: it is not the file of a run of this recipe.")
    return value


@contextmanager
def built_from(path: Path) -> Iterator[None]:
    """Turns errors over what a file of a run describes into one that names the file.

    Raises:
        ValueError: If the block meets a missing field or a value that nothing can be built from.
    """
    try:
        yield
    except (KeyError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        reason = f"lacks {error}" if isinstance(error, KeyError) else f"describes no model ({error})"
        raise ValueError(f"{path} {reason}: restore it from a copy of the run, or train again.") from error


def read_metrics(run: Path) -> dict[str, Any]:
    """Reads ``metrics.json``, to which every stage adds its section; empty before the first one did."""
    path = run / "metrics.json"
    return read_object(path) if path.is_file() else {}


def update_metrics(run: Path, /, **sections: Any) -> None:
    """Replaces sections of ``metrics.json``."""
    write_json(run / "metrics.json", read_metrics(run) | sections)


def write_history(path: Path, epochs: Iterable[dict[str, Any]]) -> None:
    """Writes one json object per epoch and line."""
    path.write_text("".join(json.dumps(epoch, allow_nan=False) + "\n" for epoch in epochs))


def run_device(accelerator: str) -> "torch.device":
    """Returns where a trained run computes: a GPU if there is one, unless its settings name the ``cpu``."""
    import torch  # here, so that what only reads runs starts at once

    return torch.device("cuda" if torch.cuda.is_available() and accelerator != "cpu" else "cpu")


def peak_memory_bytes() -> int:
    """Returns the most memory used so far: of the GPU where one is used, else of this process."""
    import torch

    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def environment() -> dict[str, Any]:
    """Returns device and versions, for the record."""
    import timm
    import torch
    import transformers

    from moekit import __version__

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"cpu ({torch.get_num_threads()} threads)"
    return {
        "device": device,
        "versions": {
            "moekit": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "timm": timm.__version__,
            "transformers": transformers.__version__,
        },
    }


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    raise TypeError(f"{type(value).__name__} cannot be written as json")
