"""From the name of a released model to its adapter."""

from collections.abc import Callable
from pathlib import Path

from recipes.medmoe.models.adapter import Adapter
from recipes.medmoe.models.choice import ModelChoice

Loader = Callable[[str, Path | None, Path | None], Adapter]
"""From what stands behind the colon, and the folders of text tower and tokenizer, to the adapter."""


def _open_clip(place: str, tower: Path | None, tokenizer: Path | None) -> Adapter:
    from recipes.medmoe.models.open_clip import OpenClipAdapter

    return OpenClipAdapter.load(place, tower, tokenizer)


def _transformers(place: str, tower: Path | None, tokenizer: Path | None) -> Adapter:
    from recipes.medmoe.models.transformers_clip import TransformersClipAdapter

    return TransformersClipAdapter.load(place, tower, tokenizer)


def _unimed(place: str, tower: Path | None, tokenizer: Path | None) -> Adapter:
    from recipes.medmoe.models.unimed import load_unimed

    return load_unimed(place, tower, tokenizer)


def _gloria(place: str, tower: Path | None, tokenizer: Path | None) -> Adapter:
    from recipes.medmoe.models.gloria import GloriaAdapter

    return GloriaAdapter.load(place, tower, tokenizer)


def _medclip(place: str, tower: Path | None, tokenizer: Path | None) -> Adapter:
    from recipes.medmoe.models.medclip import MedClipAdapter

    return MedClipAdapter.load(place, tower, tokenizer)


def _pmc_clip(place: str, tower: Path | None, tokenizer: Path | None) -> Adapter:
    from recipes.medmoe.models.pmc_clip import PmcClipAdapter

    return PmcClipAdapter.load(place, tower, tokenizer)


def _keepfit(place: str, tower: Path | None, tokenizer: Path | None) -> Adapter:
    from recipes.medmoe.models.keepfit import KeepFitAdapter

    return KeepFitAdapter.load(place, tower, tokenizer)


def _biovil(place: str, tower: Path | None, tokenizer: Path | None) -> Adapter:
    from recipes.medmoe.models.biovil import BioVilAdapter

    return BioVilAdapter.load(place, tower, tokenizer)


LOADERS: dict[str, Loader] = {
    "open_clip": _open_clip,
    "transformers": _transformers,
    "unimed": _unimed,
    "gloria": _gloria,
    "medclip": _medclip,
    "pmc-clip": _pmc_clip,
    "keepfit": _keepfit,
    "biovil": _biovil,
}
"""By what stands before the colon; the libraries are imported where a model is loaded."""


def load_adapter(choice: ModelChoice) -> Adapter:
    """Loads a released model.

    Args:
        choice: Which.

    Returns:
        The adapter, in eval mode and without gradients.

    Raises:
        ValueError: If there is no such kind of model, a folder is missing, or weights are missing or unexpected.
        RuntimeError: If something that a hub has cannot be loaded; the message names a remedy.
        ImportError: If a library is missing.
    """
    kind, colon, place = str(choice.model).partition(":")
    if not colon or not place or kind not in LOADERS:
        raise ValueError(
            f"model (--model) must be KIND:NAME_OR_PATH with one of the kinds {', '.join(LOADERS)}, got "
            f"{choice.model!r}."
        )
    for folder, option in ((choice.text_tower, "--text-tower"), (choice.tokenizer, "--tokenizer")):
        if folder is not None and not folder.is_dir():
            raise ValueError(f"{folder} is no folder, expected one that save_pretrained wrote ({option}).")
    return LOADERS[kind](place, choice.text_tower, choice.tokenizer).eval().requires_grad_(False)
