"""Reads what the stages left in a run's folder, where every stage but the pretraining may be missing."""

from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from numpy.typing import NDArray

from recipes.shared.epochs import training_from_one
from recipes.shared.report.files import check_section, content_of, read_examples, read_history, read_object
from recipes.shared.report.formats import join_once

ROUTED_BY = {"image": "the image", "text": "the report", "label": "the known modality", "none": ""}
"""What chooses the expert, by the run's ``route_on``, in words; empty without experts to choose from."""
MODEL = "model.json"
"""What the folder of a released model's results holds instead of settings."""
HISTORY_KEYS = ("epoch", "train_loss", "val_loss")
RUN_KEYS = ("route_on", "modalities")
ROUTING_KEYS = ("modalities", "experts", "matrix", "counts", "accuracy", "by")
ZERO_SHOT_KEYS = ("accuracy", "chance", "macro_auroc", "mean_over", "route_on", "sets")
SET_KEYS = ("set", "accuracy", "scoring", "split", "confusion")
EXAMPLE_KEYS = (
    "images", "ids", "texts", "modalities", "boxes", "words", "word_maps", "hits", "scale_weights", "expert_probs",
    "expert", "expert_names",
)  # fmt: skip


@dataclass(frozen=True)
class Run:
    """A run folder's content.

    Attributes:
        config: The frozen configuration; of a released model what its results were made with.
        metrics: ``metrics.json``, to which every stage adds its section.
        history: One record per epoch, in order.
        zero_shot: ``zero_shot/SET.json`` by set.
        examples: Arrays of ``explain/examples.npz``, or ``None`` where there is no such file.
        released: Whether the folder holds the results of a released model: no training and no experts.
    """

    config: dict[str, Any]
    metrics: dict[str, Any]
    history: list[dict[str, Any]]
    zero_shot: dict[str, dict[str, Any]]
    examples: dict[str, NDArray[Any]] | None
    released: bool = False

    def section(self, name: str) -> dict[str, Any]:
        """Returns a section of ``metrics.json``, empty where the stage was not run."""
        return self.metrics.get(name) or {}

    @property
    def training(self) -> dict[str, Any]:
        """The section ``training``, whose epochs are numbered from 1."""
        return training_from_one(self.section("training"))

    def expert_name(self, expert: int) -> str:
        """Returns the modality that an expert is meant for; empty for a spare one."""
        names = self.metrics["run"]["modalities"]
        return names[expert] if expert < len(names) else ""


def read_run(run_dir: Path) -> Run:
    """Reads ``config.json``, ``metrics.json``, ``history.jsonl``, ``zero_shot/*.json`` and ``explain/examples.npz``.

    Args:
        run_dir: The run's folder, or that of the results of a released model, which has ``model.json`` instead of
            ``config.json`` and ``history.jsonl``.

    Raises:
        ValueError: Naming the file that is missing, cannot be read, lacks a field or contradicts another. The
            sections of ``metrics.json`` that later stages write, ``zero_shot`` and ``explain`` may be missing.
    """
    released = (run_dir / MODEL).is_file() and not (run_dir / "config.json").is_file()
    config = read_object(run_dir / MODEL, ("model",)) if released else read_object(run_dir / "config.json")
    metrics = _metrics(run_dir / "metrics.json", config if released else None)
    history = [] if released else read_history(run_dir / "history.jsonl", HISTORY_KEYS)
    results = [read_object(path, SET_KEYS) for path in sorted((run_dir / "zero_shot").glob("*.json"))]
    zero_shot = {str(result["set"]): result for result in results}
    with content_of(run_dir / "metrics.json"):
        summaries = dict((metrics.get("zero_shot") or {}).get("sets", {}))
    _check_sets(run_dir, summaries, zero_shot)
    return Run(config, metrics, history, zero_shot, _examples(run_dir / "explain" / "examples.npz"), released)


def _about_released(note: dict[str, Any], metrics: dict[str, Any]) -> dict[str, Any]:
    """Returns the section ``run`` that the results of a released model lack."""
    kind, colon, place = str(note["model"]).partition(":")
    place = PurePath(place).name if PurePath(place).is_absolute() else place
    sets = [
        *(metrics.get("zero_shot") or {}).get("sets", {}),
        *(metrics.get("probe") or {}),
        *(metrics.get("few_shot") or {}),
    ]
    data = join_once(sets) or "none classified"
    return {"released model": f"{kind}{colon}{place}", "data": data, "route_on": "none", "modalities": []}


def _metrics(path: Path, note: dict[str, Any] | None) -> dict[str, Any]:
    """Reads ``metrics.json``; ``note`` is the ``model.json`` of a released model."""
    metrics = read_object(path, () if note else ("run",))
    if note:
        with content_of(path):
            metrics["run"] = _about_released(note, metrics)
    check_section(path, metrics, "run", RUN_KEYS)
    for name, keys in (("routing", ROUTING_KEYS), ("zero_shot", ZERO_SHOT_KEYS)):
        if metrics.get(name) is not None:
            check_section(path, metrics, name, keys)
    return metrics


def _check_sets(run_dir: Path, summaries: dict[str, Any], zero_shot: dict[str, dict[str, Any]]) -> None:
    """Checks that the summary in ``metrics.json`` and the result of each set are of the same call."""
    for name, result in zero_shot.items():
        summary = summaries.get(name)
        if not isinstance(summary, dict) or summary.get("accuracy") != result["accuracy"]:
            raise ValueError(
                f"{run_dir / 'zero_shot'}: the result of {name!r} is not the one of metrics.json. Run zero-shot again."
            )


def _examples(path: Path) -> dict[str, NDArray[Any]] | None:
    arrays = read_examples(path, EXAMPLE_KEYS, common=("expert_names",))
    if arrays is None:
        return None
    words, experts = arrays["words"].shape[1:], len(arrays["expert_names"])
    for key, sizes, what in (
        ("words", words, "words"),
        ("word_maps", words, "words"),
        ("hits", words, "words"),
        ("expert_probs", (experts,), "experts"),
    ):
        if len(sizes) != 1 or arrays[key].shape[1:2] != sizes:
            expected = sizes[0] if sizes else "some"
            raise ValueError(f"{path}: {key!r} must hold {expected} {what} per study, got shape {arrays[key].shape}.")
    return arrays
