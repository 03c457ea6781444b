"""The settings of a run: what both recipes have in common, and one reader of what a run's folder kept as json."""

import types
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, Self, TypeVar, Union, get_args, get_origin, get_type_hints

from recipes.shared.runs import read_object

Settings = TypeVar("Settings")
BatchNorm = Literal["local", "sync", "frozen"]
Sampling = Literal["shuffled", "stratified", "balanced"]
"""Any order; one in which each batch holds the strata as the split does; or one in which it holds all alike."""


@dataclass(frozen=True)
class TrainSettings:
    """How any recipe trains; each recipe adds its own and sets its own defaults."""

    epochs: int = 100
    """Passes over the training split."""
    warmup_epochs: float = 1
    """Linear warm-up; then a cosine to zero."""
    batch_size: int = 32
    """Studies per step, device and micro-batch."""
    accumulate: int = 1
    """Micro-batches per optimiser step."""
    weight_decay: float = 0.1
    """On the weight matrices of linear, convolutional and expert layers; not on biases, norms or embeddings."""
    clip_norm: float = 1.0
    """Largest norm of the gradient; 0 for no limit."""
    augment: bool = True
    """Small shifts, rotations, scalings and changes of exposure."""
    patience: int = 15
    """Stop after so many epochs without a better validation score."""
    precision: Literal["32-true", "16-mixed", "bf16-mixed"] = "16-mixed"
    """Lightning's name of the precision."""
    accelerator: str = "auto"
    """Lightning's name of the accelerator."""
    devices: int = 1
    """How many of them; on each node."""
    nodes: int = 1
    """Machines that train together; the command is started on each, see the documentation."""
    expert_parallel: int = 1
    """Processes among which the experts are divided, of all that train together: each holds a share of them, and images
    or tokens travel to it. With 1 every process holds all experts."""
    workers: int = 4
    """Processes that load data; 0 loads in the main process."""
    cache_images: bool = False
    """Keep decoded images in memory."""
    cache_folder: Path | None = None
    """Folder in which decoded training and validation images are kept for this run and later ones; none by default.
    For data sets whose images are files."""
    cache_gigabytes: float = 50.0
    """Most that the folder of decoded images may hold for one image size; the rest is read from the files."""
    loggers: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Where to send the record of every epoch, besides history.jsonl."""
    activation_checkpointing: bool = False
    """Compute the encoders' activations again in backward instead of keeping them: less memory, more time."""
    compile: bool = False
    """Compile the encoders' blocks, and what a recipe adds to them, with torch.compile."""
    batch_norm: BatchNorm = "local"
    """Batch norms of the image encoder: each device's own batch (local), the batch of all devices (sync, GPUs only), or
    the running statistics as they are (frozen)."""


@dataclass(frozen=True)
class RunSettings:
    """Base of a recipe's whole settings, which are kept as ``config.json`` in the run's folder."""

    seeds: tuple[int, ...] = (0,)
    """One run per seed; several go to OUT/seed-N."""
    resume: bool = False
    """Go on from OUT/checkpoints/last.ckpt."""

    def to_json(self) -> dict[str, Any]:
        """Returns the settings as plain types."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Returns the settings that :meth:`to_json` gave, once written and read; see :func:`settings_from_json`."""
        return settings_from_json(cls, values)


def read_settings(kind: type[Settings], run: Path) -> Settings:
    """Reads the settings of a run from its ``config.json``.

    Args:
        kind: The dataclass of a recipe's whole settings.
        run: Folder of the run.

    Raises:
        ValueError: If the file is missing, damaged, or of another recipe or version; the message names it.
    """
    path = run / "config.json"
    values = read_object(path, ("preset", "data", "model", "train"))
    try:
        return settings_from_json(kind, values)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def settings_from_json(kind: type[Settings], values: Mapping[str, Any]) -> Settings:
    """Builds a dataclass from what json kept of it: nested dataclasses, paths and tuples as they were.

    A setting that the file lacks, because an older version wrote it, takes its default. (Presets do not matter here:
    a file holds every setting that its version knew.)

    Args:
        kind: A dataclass; its fields may be dataclasses themselves.
        values: The json object.

    Raises:
        ValueError: If ``values`` holds a setting that ``kind`` does not know, or none of an object's type.
    """
    return _build(kind, values, "")


def check_same_settings(old: Any, new: Any, *, may_change: Sequence[str]) -> None:
    """Refuses to go on with a run under settings that would make it another one.

    Args:
        old: Settings that the run was started with: a dataclass with ``seeds``, ``data``, ``model`` and ``train``.
        new: Settings that it is resumed with.
        may_change: Names of the settings that may differ.

    Raises:
        ValueError: Naming the settings that differ.
    """
    differing = [f"seeds ({old.seeds}, now {new.seeds})"] if old.seeds != new.seeds else []
    for before, after in ((old.data, new.data), (old.model, new.model), (old.train, new.train)):
        for field in fields(before):
            values = getattr(before, field.name), getattr(after, field.name)
            if values[0] != values[1] and field.name not in may_change:
                differing.append(f"{field.name} ({values[0]!r}, now {values[1]!r})")
    if differing:
        raise ValueError(f"a run is resumed with the settings that it was started with, but {', '.join(differing)}.")


def _build(kind: type[Settings], values: Any, path: str) -> Settings:
    if not isinstance(values, Mapping):
        raise ValueError(f"settings: {path or 'the file'} must hold an object of settings, got {values!r}.")
    hints = get_type_hints(kind)
    names = [field.name for field in fields(kind)]  # type: ignore[arg-type]  # only dataclasses come here
    unknown = [f"{path}{name}" for name in values if name not in names]
    if unknown:
        raise ValueError(
            f"settings: {', '.join(unknown)} not known to this version of the recipe, so the run cannot be read as it "
            "was made. Use the version that made the run, or take these settings out of its config.json."
        )
    return kind(**{name: _value(hints[name], values[name], f"{path}{name}.") for name in names if name in values})


def _value(hint: Any, value: Any, path: str) -> Any:
    """Converts a value of json to its field's type: a nested dataclass, a path, a tuple, or the value itself."""
    if is_dataclass(hint) and isinstance(hint, type):
        return _build(hint, value, path)
    options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    _check_type(options, value, path)
    if Path in options and isinstance(value, str):
        return Path(value)
    return tuple(value) if isinstance(value, list) else value


def _check_type(options: tuple[Any, ...], value: Any, path: str) -> None:
    """Refuses a value of json that is none of its field's types."""
    if not any(_is(option, value) for option in options):
        expected = " or ".join(
            " or ".join(map(repr, get_args(one))) if get_origin(one) is Literal else getattr(one, "__name__", str(one))
            for one in options
        )
        raise ValueError(f"settings: {path.removesuffix('.')} must be {expected}, got {value!r}.")


def _is(option: Any, value: Any) -> bool:
    plain = get_origin(option) or option
    if plain is Literal:
        return value in get_args(option)
    if isinstance(value, bool):
        return plain is bool
    kinds: dict[Any, tuple[type, ...]] = {float: (float, int), Path: (str, Path), tuple: (list, tuple)}
    return isinstance(value, kinds.get(plain, (plain,)))
