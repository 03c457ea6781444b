"""The options by which a command takes another model than its run's own."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro


@dataclass(frozen=True)
class ModelChoice:
    """Another model beside the run's own, with the same sets, prompts and scores."""

    model: str | None = None
    """Evaluate a released model instead of a pretrained run: open_clip:NAME_OR_FOLDER, transformers:FOLDER,
    unimed:FILE, gloria:FILE, medclip:FILE, pmc-clip:FOLDER, keepfit:FILE or biovil:FILE. RUN is then the folder for its
    results; what it was made with is kept in its model.json, so that later calls may leave this out."""
    text_tower: Path | None = None
    """Folder of the text tower, where the release names one of a hub: its config.json, and of biovil its weights."""
    tokenizer: Path | None = None
    """Folder of the tokenizer, where the release names one of a hub; the text tower's by default."""
    data_of: Path | None = None
    """Run whose own data are used: its phantom sets, its pairs to retrieve or explain."""

    def to_json(self) -> dict[str, Any]:
        """Returns the choice as plain types; paths are absolute."""
        values = asdict(self)
        for name in ("text_tower", "tokenizer", "data_of"):
            values[name] = None if values[name] is None else str(Path(values[name]).resolve())
        return values

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "ModelChoice":
        """Builds a choice from what :meth:`to_json` gave."""
        paths = {name: Path(values[name]) for name in ("text_tower", "tokenizer", "data_of") if values.get(name)}
        return cls(values["model"], **paths)


OtherModel = Annotated[ModelChoice, tyro.conf.arg(name="", prefix_name=False)]
"""Type of the argument of a command that takes a choice: its options have no prefix."""

RUN_ITSELF = ModelChoice()
"""The default: no other model."""
