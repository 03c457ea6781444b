"""Models of the recipes as folders, and on the Hugging Face Hub."""

import json
from abc import ABC, abstractmethod
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from huggingface_hub import PyTorchModelHubMixin

from moekit.interop.hub.folder import download
from recipes.shared.encoders.text import TextEncoder
from recipes.shared.runs import read_json, write_json
from recipes.shared.settings import settings_from_json

_CONFIG, _ARCHITECTURE, _WEIGHTS, _TEXT = "config.json", "architecture.json", "model.safetensors", "text"


class HubModel(PyTorchModelHubMixin, ABC):
    """A model that ``save_pretrained`` writes whole, without what it was trained on.

    The folder holds the settings of the model as ``config.json``, what else its constructor takes as
    ``architecture.json``, configuration and tokenizer of the text encoder in ``text``, and all weights as
    ``model.safetensors``. ``from_pretrained`` builds the architecture of the encoders, without asking for their
    pretrained weights.

    Attributes:
        settings: The dataclass of ``config.json``; the first argument of the constructor, ``config``.
        text_encoder: The text encoder, if there is one.
    """

    settings: ClassVar[type[Any]]
    text_encoder: TextEncoder | None

    @abstractmethod
    def architecture(self) -> dict[str, Any]:
        """Returns what :meth:`from_architecture` needs beside settings and text encoder, as plain types."""

    @classmethod
    @abstractmethod
    def from_architecture(cls, config: Any, about: dict[str, Any], text_encoder: TextEncoder | None) -> Self:
        """Builds the model with random weights.

        Args:
            config: The settings.
            about: What :meth:`architecture` returned.
            text_encoder: The architecture of the text encoder.
        """

    def _save_pretrained(self, save_directory: Path) -> None:
        write_json(save_directory / _ARCHITECTURE, self.architecture() | {"text": self.text_encoder is not None})
        if self.text_encoder is not None:
            self.text_encoder.save(save_directory / _TEXT)
        super()._save_pretrained(save_directory)

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        map_location: str = "cpu",
        **model_kwargs: Any,
    ) -> Self:
        files = [_CONFIG, _ARCHITECTURE, _WEIGHTS, f"{_TEXT}/*"]
        folder = download(model_id, revision, token, cache_dir, force_download, local_files_only, files)
        values, about = read_json(folder / _CONFIG), read_json(folder / _ARCHITECTURE)
        # huggingface_hub passes what it read of config.json; what a caller adds would not reach the model.
        added = [name for name, value in model_kwargs.items() if _plain(value) not in (values, values.get(name))]
        if added:
            raise ValueError(
                f"from_pretrained takes no settings of a {cls.__name__}, got {', '.join(added)}: the folder holds them."
            )
        text_encoder = TextEncoder.from_saved(folder / _TEXT) if about.pop("text") else None
        model = cls.from_architecture(settings_from_json(cls.settings, values), about, text_encoder)
        return cls._load_as_safetensor(model, str(folder / _WEIGHTS), map_location, strict=True)


def _plain(value: Any) -> Any:
    """Returns a value as json would give it back."""
    is_settings = is_dataclass(value) and not isinstance(value, type)
    return json.loads(json.dumps(asdict(value) if is_settings else value, default=repr))
