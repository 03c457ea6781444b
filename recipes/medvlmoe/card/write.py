"""Fills the card's template from the files of a run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, UndefinedError

from recipes.data.leakage import LEAKAGE
from recipes.data.terms import terms_of
from recipes.shared.fingerprint import FILE as DATA_FILE
from recipes.shared.report.facts import data_name, is_phantom
from recipes.shared.report.files import content_of
from recipes.shared.report.formats import decimals, interval_text
from recipes.shared.runs import read_object

CARD = "README.md"
"""The name under which the Hugging Face Hub shows a card."""


_UNKNOWN = "not known"
_ABOUT = {"studies": {}, "notes": [], "versions": {}, "parameters": 0, "text_encoder": None, "task": "multi-label"} | (
    dict.fromkeys(("preset", "variant", "seed", "checkpoint", "device", "image_encoder"), _UNKNOWN)
)
_MODEL = {"image_size": _UNKNOWN, "text_tokens": _UNKNOWN}
"""What runs of earlier versions may lack."""


def write_card(run: Path) -> Path:
    """Writes the model card of an evaluated run, ``README.md`` in its folder.

    With huggingface_hub it begins with the metadata that the Hub reads; the text is the same without.

    Args:
        run: Folder of the run.

    Returns:
        The card's path.

    Raises:
        ValueError: Naming the file of the run that is missing or cannot be used.
    """
    config = read_object(run / "config.json")
    path = run / "metrics.json"
    metrics = read_object(path, ("run", "test"))
    data = read_object(run / DATA_FILE) if (run / DATA_FILE).is_file() else {}
    leakage = read_object(run / LEAKAGE, ("data", "similarity", "counts")) if (run / LEAKAGE).is_file() else None
    with content_of(path):
        about = _ABOUT | metrics["run"]
        content = {
            "run": run,
            "name": about.get("name") or run.resolve().name,
            "about": about,
            "data": data_name(about),
            "phantom": is_phantom(about),
            "terms": terms_of(data_name(about)),
            "fingerprints": {name: _fingerprint(split) for name, split in data.items()},
            "test": metrics["test"],
            "calibration": metrics.get("calibration"),
            "experts": metrics.get("experts"),
            "subgroups": metrics.get("subgroups") or {},
            "model": _MODEL | (config.get("model") or {}),
            "leakage": leakage,
            "grouped": metrics["test"]["groups"] < metrics["test"]["studies"],
        }
        try:
            text = _metadata(content) + _template().render(content)
        except UndefinedError as error:
            raise ValueError(f"{error}") from error
    target = run / CARD
    target.write_text(text, encoding="utf-8")
    return target


def _metadata(content: Mapping[str, Any]) -> str:
    """Returns the card's head for the Hub, nothing without its package."""
    try:
        from huggingface_hub import EvalResult, ModelCardData
    except ImportError:
        return ""
    macro = content["test"]["macro_auroc"]
    results = []
    if macro is not None:
        results = [
            EvalResult(
                task_type="image-classification",
                dataset_type=content["data"],
                dataset_name=content["data"],
                dataset_split="test",
                metric_type="roc_auc",
                metric_name="macro AUROC",
                metric_value=round(macro, 4),
            )
        ]
    tags = ["medical", "mixture-of-experts", "multimodal", "not-a-medical-device"]
    card = ModelCardData(library_name="moekit", tags=tags, model_name=content["name"], eval_results=results or None)
    return f"---\n{card.to_yaml()}\n---\n\n"


def _template() -> Any:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        # The result is Markdown: names are made safe by the filter `cell`.
        autoescape=False,
    )
    environment.filters |= {"cell": _cell, "decimals": decimals, "interval": interval_text}
    return environment.get_template("card.md.j2")


def _cell(value: object) -> str:
    """Returns a name or note as plain text in Markdown, also within a table."""
    text = " ".join(str(value).split())
    for sign in "\\|`*_[]#":
        text = text.replace(sign, f"\\{sign}")
    return text.replace("<", "&lt;").replace(">", "&gt;")


def _fingerprint(split: Mapping[str, Any]) -> str:
    """Returns the first digits of a split's checksums."""
    return ", ".join(f"{key} {str(value)[:8]}" for key, value in split.items() if key != "studies" and value)
