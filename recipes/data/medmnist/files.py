"""Finds a MedMNIST file by flag or path, and downloads it when asked."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recipes.data.arguments import argument
from recipes.shared.extras import require

_SIZES = (28, 64, 128, 224)
"""Sides of the images of a two-dimensional set, in pixels."""


def find_file(data: str | Path, *, size: int, root: str | Path | None, download: bool, info: Mapping[str, Any]) -> Path:
    """Finds the file that ``data`` names.

    Args:
        data: A flag, or a path that ends in ``.npz``.
        size: For a flag, side of the images in pixels.
        root: For a flag, folder to look in; ``None`` is medmnist's own.
        download: For a flag, whether to download what is not there.
        info: ``medmnist.INFO``.

    Returns:
        A path that exists.

    Raises:
        ValueError: If there is no such file, or no such flag to download.
        RuntimeError: If the download fails.
    """
    if isinstance(data, Path) or str(data).endswith(".npz"):
        path = Path(data)
        if not path.is_file():
            raise ValueError(f"{argument('data')}: the file {str(path)!r} does not exist")
        return path
    if data in info and not str(data).endswith("3d") and size not in _SIZES:
        raise ValueError(f"{argument('size')}: {data} comes in {list(_SIZES)} pixels, got {size}")
    root = _default_root() if root is None else Path(root)
    path = root / (f"{data}.npz" if size == 28 else f"{data}_{size}.npz")
    if path.is_file():
        return path
    if data not in info:
        flags = ", ".join(flag for flag in info if not flag.endswith("3d"))
        raise ValueError(
            f"{argument('data')}: {data!r} is no flag of MedMNIST, and {str(path)!r} does not exist. "
            f"Give the path of an .npz file or one of {flags}."
        )
    if not download:
        raise ValueError(
            f"{argument('data')}: {str(path)!r} does not exist. Pass {argument('download', 'True')}, or "
            f"{argument('root')}, the folder that holds it, or the path of an .npz file."
        )
    _download(data, size, path, info)
    return path


def _default_root() -> Path:
    return Path.home() / ".medmnist"


def _download(flag: str, size: int, path: Path, info: Mapping[str, Any]) -> None:
    """Downloads one file through the medmnist package."""
    medmnist = require("medmnist", "downloading MedMNIST")
    dataset = getattr(medmnist, info[flag]["python_class"])
    if size not in dataset.available_sizes:
        raise ValueError(f"{argument('size')}: {flag} comes in {dataset.available_sizes} pixels, got {size}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        dataset(split="train", root=str(path.parent), size=size, download=True)
    # medmnist wraps every failure in a RuntimeError; what it leaves behind may raise others on reading.
    except Exception as error:
        path.unlink(missing_ok=True)
        url = info[flag]["url" if size == 28 else f"url_{size}"]
        raise RuntimeError(
            f"could not download {flag} at size {size}. Check the network, or download {url} elsewhere and "
            f"save it as {str(path)!r}."
        ) from error
