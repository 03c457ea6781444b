"""The models of a table: presets that the sweep pretrains, and released weights."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from recipes.medmoe.baselines import BASELINES
from recipes.medmoe.models.choice import ModelChoice, OtherModel
from recipes.medmoe.models.load import LOADERS
from recipes.medmoe.tables.printed import OURS
from recipes.shared.sweeps.named_options import named_options
from recipes.shared.sweeps.options import check_models

TRAINED = (OURS, *BASELINES)
"""What the sweep can pretrain."""
SIZES: Mapping[str, Mapping[str, str]] = {
    "tiny": {name: "tiny" if name == OURS else f"{name}-tiny" for name in TRAINED},
    "release": {name: "release" if name == OURS else name for name in TRAINED},
}
"""Preset of each, by the size of the encoders."""
SETTING = "released (--released)"
HINTS = {
    "quiltnet": "open_clip:FOLDER", "keepfit": "keepfit:FILE", "gloria": "gloria:FILE", "medclip": "medclip:FILE",
    "pmc-clip": "pmc-clip:FOLDER", "biomedclip": "open_clip:FOLDER", "unimed-clip": "unimed:FILE",
    "clip": "transformers:FOLDER",
}  # fmt: skip
"""How to give the released models of the paper's tables."""
_BEHIND = "-released"


@dataclass(frozen=True)
class TableModel:
    """A row of a table.

    Attributes:
        name: In the table, and of folders.
        preset: What the sweep pretrains; ``None`` of released weights.
        choice: Released weights; ``None`` of a preset, and of a row of the paper that is not here.
        printed: What the paper's tables call it in ``printed``; ``None`` where they have no such row.
        absent: Why it is not here; ``None`` if it is.
    """

    name: str
    preset: str | None = None
    choice: ModelChoice | None = None
    printed: str | None = None
    absent: str | None = None


def trained_models(names: Sequence[str], size: str) -> list[TableModel]:
    """Returns the models that the sweep pretrains.

    Args:
        names: Some of :data:`TRAINED`.
        size: ``"tiny"`` or ``"release"``.

    Raises:
        ValueError: If one is unknown or repeats, or MedMoE is left out.
    """
    check_models(names, TRAINED, OURS)
    return [TableModel(name, preset=SIZES[size][name], printed=OURS if name == OURS else None) for name in names]


def released_models(entries: Sequence[str], printed: Sequence[str]) -> list[TableModel]:
    """Returns the released models: those that ``--released`` names, and the paper's others as absent ones.

    Args:
        entries: ``NAME=OPTIONS`` each with ``--model`` and what belongs to it, or a TOML file of such lines.
        printed: Names of the paper's rows.

    Raises:
        ValueError: If an entry is neither, its options are not valid, or a name repeats.
    """
    models: dict[str, TableModel] = {}
    for entry in entries:
        named = named_options(entry, SETTING, ("--model",))
        if named is None:
            raise ValueError(f"{SETTING} must be NAME=OPTIONS with --model among them, got {entry!r}.")
        for name, options in named.items():
            if name in models:
                raise ValueError(f"{SETTING} must have different names, got {name} more than once.")
            choice = _choice(name, options)
            known = name if name in printed and name != OURS else None
            models[name] = TableModel(name + _BEHIND, choice=choice, printed=known, absent=_why_absent(choice))
    for name in printed:
        if name not in models and name != OURS:
            hint = f"pass --released {name}='--model {HINTS[name]}'"
            models[name] = TableModel(name + _BEHIND, printed=name, absent=hint)
    return list(models.values())


def _choice(name: str, options: Sequence[str]) -> ModelChoice:
    def parse(choice: OtherModel = ModelChoice()) -> ModelChoice:  # noqa: B008  # frozen
        return choice

    choice = tyro.cli(parse, args=list(options), prog=f"{SETTING} {name}")
    kind = str(choice.model).partition(":")[0]
    if kind not in LOADERS:
        raise ValueError(f"{SETTING}: --model of {name} must be of one of {', '.join(LOADERS)}, got {choice.model!r}.")
    if choice.data_of is not None:
        raise ValueError(f"{SETTING}: --data-of of {name} is decided by the table: leave it out.")
    return choice


def _why_absent(choice: ModelChoice) -> str | None:
    """Tells which file or folder of a released model is not here; a hub is not contacted."""
    kind, _, place = str(choice.model).partition(":")
    if kind not in ("open_clip", "transformers") and not Path(place).exists():
        return f"no weights at {place}"
    missing = [str(folder) for folder in (choice.text_tower, choice.tokenizer) if folder and not folder.is_dir()]
    return f"no folder {', '.join(missing)}" if missing else None
