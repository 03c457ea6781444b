"""Model classes with ``save_pretrained``, ``from_pretrained`` and ``push_to_hub``, whose arguments may be parts."""

from collections.abc import Callable
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, Self, cast

import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import nn

from moekit.interop.hub.decode import Decoder
from moekit.interop.hub.encode import Encoder
from moekit.interop.hub.folder import download, load_into, save_into
from moekit_kernels.activations import Activation

# Marks an argument of a constructor in config.json as one of moekit.
_KEY = "moekit"
_REFUSED = "refused"


def _encode(value: object) -> dict[str, Any]:
    try:
        return {_KEY: Encoder().value(value, "", type(value).__name__)}
    except ValueError as error:
        # A model that is never saved may have any parts: raised when it is.
        return {_KEY: None, _REFUSED: str(error)}


def _unchanged(value: Any) -> Any:
    return value


def _decode(value: object) -> object:
    encoded = cast(dict[str, Any], value)[_KEY] if isinstance(value, dict) and _KEY in value else None
    if encoded is None:
        return cast(object, value)
    return Decoder({"": encoded}).value(encoded, "")


class MoEHubMixin(PyTorchModelHubMixin):
    """``PyTorchModelHubMixin`` of huggingface_hub for models whose constructor takes parts of moekit, or builds some.

    Arguments that are modules of moekit, of a registered class (:func:`register_part`) or plain layers of torch, alone
    or in sequences, stand in ``config.json`` as what rebuilds them, and so do known functions; numbers, strings and
    dataclasses as ever. ``moekit.json`` holds the parts that the model has when it is saved, so changes after
    construction come back too. ``from_pretrained`` gives the model in evaluation mode.

    Example:
        >>> import tempfile
        >>> from torch import nn
        >>> from moekit import FFNExperts, Router, SparseMoE, TopKRouter
        >>> from moekit.interop.hub import MoEHubMixin
        >>> class Block(nn.Module, MoEHubMixin):
        ...     def __init__(self, dim: int, router: Router) -> None:
        ...         super().__init__()
        ...         self.norm = nn.LayerNorm(dim)
        ...         self.moe = SparseMoE(router, FFNExperts(dim, 2 * dim, router.num_experts))
        ...     def forward(self, x):
        ...         return x + self.moe(self.norm(x)).output
        >>> block = Block(16, TopKRouter(16, 4, 2, scoring="sigmoid"))
        >>> block.moe.capacity_factor = 1.25
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = block.save_pretrained(folder)
        ...     loaded = Block.from_pretrained(folder)
        >>> loaded.moe.router.scoring, loaded.moe.capacity_factor
        ('sigmoid', 1.25)
    """

    _lost_arguments: tuple[str, ...] = ()

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Keeps the arguments that huggingface_hub leaves out without a word: functions, and sequences of parts."""
        instance = super().__new__(cls, *args, **kwargs)
        names = list(cast(dict[str, Any], cls._hub_mixin_init_parameters))[1:]
        passed = dict(zip(names, args, strict=False)) | kwargs
        settings = passed.pop("config", None)
        if is_dataclass(settings):
            instance._lost_arguments = tuple(passed)
            return instance
        config = cast(dict[str, Any], instance._hub_mixin_config or {})
        left_out = {
            name: _encode(value)
            for name, value in passed.items()
            # A device is that of this process.
            if not cls._is_jsonable(value) and not isinstance(value, torch.device)
        }
        if left_out:
            instance._hub_mixin_config = config | left_out
        return instance

    def __init_subclass__(
        cls,
        *args: Any,
        coders: dict[type, tuple[Callable[[Any], Any], Callable[[Any], Any]]] | None = None,
        **kwargs: Any,
    ) -> None:
        """Adds the coders of parts, which huggingface_hub does not inherit."""
        # Decoded in _from_pretrained, whatever the annotation of the argument.
        own = dict.fromkeys((nn.Module, Activation), (_encode, _unchanged))
        super().__init_subclass__(*args, coders={**(coders or {}), **own}, **kwargs)

    def _save_pretrained(self, save_directory: Path) -> None:
        if self._lost_arguments:
            raise ValueError(
                f"the arguments {', '.join(self._lost_arguments)} cannot be saved: beside a dataclass as config, "
                "huggingface_hub keeps no others. Name the dataclass otherwise, such as settings."
            )
        config = cast(object, self._hub_mixin_config)
        for name, value in cast(dict[str, Any], config if isinstance(config, dict) else {}).items():
            if isinstance(value, dict) and _REFUSED in value:
                raise ValueError(f"the argument {name} cannot be saved: {value[_REFUSED]}")
        # The model itself is built by its constructor.
        save_into(cast(nn.Module, self), save_directory, within=True)

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
        folder = download(model_id, revision, token, cache_dir, force_download, local_files_only)
        model = cls(**{name: _decode(value) for name, value in model_kwargs.items()})
        return cast(Self, load_into(cast(nn.Module, model), folder, torch.device(map_location)))
