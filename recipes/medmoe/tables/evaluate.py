"""What the evaluating cells of the tables compute, by the functions of the stages, into a folder of their own."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from recipes.data.evaluation.types import EvaluationSet
from recipes.data.pairs import PairStream
from recipes.data.phantom import phantom_several_findings
from recipes.data.studies import StudySplit
from recipes.medmoe.data.labelled_sets import open_sets
from recipes.medmoe.explain.examples import choose, write_examples
from recipes.medmoe.explain.from_training import learn_boxes
from recipes.medmoe.explain.game import play
from recipes.medmoe.explain.seen import explanation, look
from recipes.medmoe.hints import DRAWN
from recipes.medmoe.inference.near_duplicates import set_without_near_duplicates
from recipes.medmoe.inference.released import ReleasedSession
from recipes.medmoe.inference.run import Session
from recipes.medmoe.inference.session import ModelSession
from recipes.medmoe.probe.evaluation import probe_set
from recipes.medmoe.tables.cells import PREDICTIONS, RESULT, open_cell
from recipes.medmoe.zero_shot.evaluation import evaluate_scores
from recipes.medmoe.zero_shot.prompt_files import Prompts, choose_prompts
from recipes.medmoe.zero_shot.scoring import ClassScores
from recipes.medmoe.zero_shot.stage import prompts_of
from recipes.shared.fingerprint import write_fingerprint
from recipes.shared.runs import write_json

ZERO_SHOT = (
    "set", "model", "task", "split", "modality", "scoring", "route_on", "chance", "accuracy", "accuracy_ci95",
    "majority_share", "balanced_accuracy", "macro_auroc", "macro_auroc_ci95", "prompt_spread", "undefined_classes",
    "studies", "groups", "classes", "notes",
)  # fmt: skip
"""What tables keep of a set's result."""
EXAMPLES = 8
"""Studies whose maps are drawn."""


def zero_shot(settings: Mapping[str, Any], run: Path) -> Mapping[str, Any]:
    """Classifies a set by prompts; writes ``predictions.csv`` and what the set is made of.

    Args:
        settings: Of the cell: ``set`` (:class:`~recipes.medmoe.tables.sets.SetOptions` as json), ``scoring``,
            ``bootstrap``.
        run: Its folder.

    Returns:
        :data:`ZERO_SHOT`, ``prompts`` (the file's name, a checksum of the texts, and their number),
        ``near_duplicates`` (as in the stage's result) and ``unknown_words`` (their share).
    """
    session = open_cell(settings, run)
    one, own = _open_set(session, settings["set"])
    about = settings["set"]
    chosen = choose_prompts(prompts_of(one, own, about["prompts"], templates=about["templates"]), one.classes)
    split = about["split"]
    one, overlap = set_without_near_duplicates(session, one, split, about["near_duplicates"])
    result, scores = evaluate_scores(
        session,
        one,
        chosen,
        scoring=settings["scoring"],
        split=split,
        modality=about["modality"],
        bootstrap=settings["bootstrap"],
    )
    write_fingerprint(run, [(split, one.splits[split])])
    _write_predictions(run / PREDICTIONS, one.splits[split], one.classes, scores)
    write_json(run / RESULT, result)
    unknown = result["unknown_words"]
    return {
        **{name: result.get(name) for name in ZERO_SHOT},
        "prompts": _about_prompts(chosen),
        "near_duplicates": overlap,
        "unknown_words": None if unknown is None else unknown["share"],
    }


def probe(settings: Mapping[str, Any], run: Path) -> Mapping[str, Any]:
    """Fits linear classifiers on the frozen features of a set; writes ``result.json``.

    Args:
        settings: Of the cell: ``set``, ``features``, ``fractions``, ``subsets``, ``refit``, ``select``.
        run: Its folder. Features are kept in that of the pretraining, where other cells find them.

    Returns:
        What :func:`~recipes.medmoe.probe.evaluation.probe_set` returns, and ``near_duplicates`` (as in the stage's
        result).
    """
    session = open_cell(settings, run)
    one, _ = _open_set(session, settings["set"])
    one, overlap = set_without_near_duplicates(session, one, "test", settings["set"]["near_duplicates"])
    options = {name: settings[name] for name in ("fractions", "subsets", "refit", "select")}
    result = probe_set(session, one, kind=settings["features"], modality=settings["set"]["modality"], **options)
    result |= {"near_duplicates": overlap}
    write_fingerprint(run, one.splits.items())
    write_json(run / RESULT, result)
    return result


def maps(settings: Mapping[str, Any], run: Path) -> Mapping[str, Any]:
    """Plays the pointing game on the test split of a run's own data, and keeps the maps of some studies.

    Args:
        settings: Of the cell: ``bootstrap``.
        run: Its folder: ``result.json`` and ``explain/``.

    Returns:
        As the section ``pointing_game`` of ``metrics.json``.

    Raises:
        ValueError: If the test split is a stream.
    """
    opened = open_cell(settings, run)
    source, session = opened.source(), _within(opened, run)
    pairs = source.test
    if isinstance(pairs, PairStream):
        raise ValueError("the test split is a stream, whose maps cannot be listed.")
    learnt = learn_boxes(session, source.train)
    game, played = play(session, pairs, learn=lambda: learnt, bootstrap=settings["bootstrap"])
    if session.data == DRAWN:  # each of its studies has one finding
        drawn = phantom_several_findings(split="test", count=max(1, len(pairs) // 2), size=pairs[0].image.shape[0])
        several = play(session, drawn, learn=lambda: learnt, bootstrap=settings["bootstrap"])[0]
        game |= {"several_findings": several, "several_findings_drawn": True}
    chosen = choose(pairs, played, EXAMPLES)
    size = session.batch_size
    batches = [chosen[start : start + size] for start in range(0, len(chosen), size)]
    seen = [one for batch in batches for one in look(session, [pairs[row] for row in batch])]
    write_examples(session, [explanation(one) for one in seen])
    write_fingerprint(run, [("test", pairs)])
    write_json(run / RESULT, game)
    return game | {"studies_drawn": [pairs.ids[row] for row in chosen]}


def _within(session: ModelSession, run: Path) -> ModelSession:
    """Returns a session that writes into the cell's folder, not into that of the pretraining."""
    assert isinstance(session, Session | ReleasedSession)
    return replace(session, run=run)


def _open_set(session: ModelSession, about: Mapping[str, Any]) -> tuple[EvaluationSet, Any]:
    ((one, own),) = open_sets(
        session,
        names=None if about["set"] is None else (about["set"],),
        root=None if about["root"] is None else Path(about["root"]),
        csv=None if about["csv"] is None else Path(about["csv"]),
        options=tuple(about["options"]),
    )
    return one, own


def _write_predictions(path: Path, studies: StudySplit, classes: Sequence[str], scores: ClassScores) -> None:
    labels = np.asarray(studies.labels, np.float64)
    columns: dict[str, Any] = {"id": list(studies.ids), "group": list(studies.groups), "split": "test"}
    columns |= {f"label:{name}": labels[:, c] for c, name in enumerate(classes)}
    columns |= {f"prob:{name}": scores.probs[:, c] for c, name in enumerate(classes)}
    pd.DataFrame(columns).to_csv(path, index=False)


def _about_prompts(prompts: Prompts) -> dict[str, Any]:
    texts = prompts.to_json()
    digest = hashlib.sha256(json.dumps(texts, sort_keys=True).encode()).hexdigest()[:16]
    return {"file": prompts.name, "checksum": digest, "texts": sum(map(len, texts["classes"].values()))}
