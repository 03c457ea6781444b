"""Linear probing of one set: subsets of its training split, the weight decay chosen on validation, the test scored."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from recipes.data.evaluation.types import EvaluationSet
from recipes.data.studies import SPLITS
from recipes.medmoe.choices import Features as Kind
from recipes.medmoe.choices import Refit, Select
from recipes.medmoe.inference.local_scoring import as_run
from recipes.medmoe.inference.session import ModelSession
from recipes.medmoe.probe.features import Features, set_features
from recipes.medmoe.probe.linear import fit_probe, predict_probe
from recipes.medmoe.probe.selection import WEIGHT_DECAYS, choose_inside, choose_on_validation
from recipes.medmoe.probe.subsets import draw_subset
from recipes.shared.scores.metrics import evaluate_predictions
from recipes.shared.scores.single_label import single_label_scores

SINGLE_LABEL = ("balanced_accuracy", "macro_f1", "kappa")
"""Scores of single-label sets beside accuracy, see `single_label_scores`."""


class Part(NamedTuple):
    """Features ``(N, F)``, labels ``(N, C)`` and groups of a split."""

    features: NDArray[np.float64]
    labels: NDArray[np.float64]
    groups: list[str]


def probe_set(
    session: ModelSession,
    one: EvaluationSet,
    *,
    kind: Kind = "global",
    fractions: Sequence[float] = (0.01, 0.1, 1.0),
    subsets: int = 5,
    seed: int = 0,
    refit: Refit = "train",
    select: Select = "val",
    modality: str | None = None,
    checkpoint: str = "best",
) -> dict[str, Any]:
    """Probes one set; see :func:`main` for the arguments.

    Returns:
        What ``probe/SET.json`` holds: ``fractions`` lists, for each share, ``accuracy``, ``macro_auroc`` and, of
        single-label sets, ``balanced_accuracy``, ``macro_f1`` and ``kappa`` (each ``mean``, ``sd`` and ``values``, one
        per subset), and ``subsets`` (seed, studies, chosen weight decay). ``protocol`` says in words what was fitted on
        what.

    Raises:
        ValueError: If the set lacks a split that the protocol needs, or an option is out of range.
    """
    used = [name for name in SPLITS if name != "val" or select == "val" or refit == "train+val"]
    missing = [name for name in used if name not in one.splits]
    if missing:
        raise ValueError(
            f"the set {one.name} has no {' and no '.join(missing)} split, which a linear probe needs: it has "
            f"{', '.join(one.splits)}. Give a table with a split column (--options split_column=NAME), or "
            "evaluate it zero-shot."
        )
    wrong = [fraction for fraction in fractions if not 0 < fraction <= 1]
    if wrong or not fractions:
        raise ValueError(f"fractions must name shares in (0, 1], got {tuple(fractions)} (--fractions).")
    features = {
        name: set_features(session, one, name, local=kind != "global", modality=modality, checkpoint=checkpoint)
        for name in used
    }
    parts = {name: _part(one, name, features[name].matrix(kind)) for name in used}
    rows = []
    for fraction in fractions:
        seeds = range(seed, seed + (1 if fraction == 1 else subsets))
        rows.append(_fraction(fraction, [_one_subset(parts, one, fraction, s, refit, select) for s in seeds]))
    return {
        "set": one.name,
        "model": session.name,
        "task": one.task,
        "features": kind,
        "dim": parts["train"].features.shape[1],
        "refit": refit,
        "select": select,
        "protocol": protocol(refit, select, len(parts["val"].labels) if "val" in parts else 0),
        "weight_decays": list(WEIGHT_DECAYS),
        "chosen_by": "macro AUROC, then likelihood" if one.task == "multi-label" else "accuracy, then likelihood",
        "studies": {name: len(part.labels) for name, part in parts.items()},
        "chance": None if one.task == "multi-label" else 1 / len(one.classes),
        "majority_share": None if one.task == "multi-label" else _majority_share(parts["test"].labels),
        "routing": _routing(session, features["test"], kind),
        "checkpoint": checkpoint,
        "classes": list(one.classes),
        "notes": list(one.notes),
        "fractions": rows,
    }


def _part(one: EvaluationSet, split: str, features: NDArray[np.float32]) -> Part:
    studies = one.splits[split]
    return Part(features.astype(np.float64), np.asarray(studies.labels, np.float64), list(studies.groups))


def _one_subset(
    parts: dict[str, Part], one: EvaluationSet, fraction: float, seed: int, refit: Refit, select: Select
) -> dict[str, Any]:
    """Sweeps the weight decay on one subset, trains the best again, and scores it on the test split."""
    train, test = parts["train"], parts["test"]
    rows = draw_subset(train.labels, train.groups, fraction, seed)
    x, y = train.features[rows], train.labels[rows]
    if select == "val":
        chosen = choose_on_validation(x, y, parts["val"].features, parts["val"].labels, one.task)
    else:
        chosen = choose_inside(x, y, [train.groups[row] for row in rows], one.task, seed=seed)
    if refit == "train+val":
        x, y = np.concatenate([x, parts["val"].features]), np.concatenate([y, parts["val"].labels])
    probe = fit_probe(x, y, one.task, chosen.weight_decay)
    probs = predict_probe(probe, test.features, one.task)
    scores = evaluate_predictions(probs, test.labels, test.groups, one.classes, task=one.task, bootstrap=0)
    single = single_label_scores(probs, test.labels, test.groups, one.classes, task=one.task, bootstrap=0) or {}
    return {
        "seed": seed,
        "train_studies": len(rows),
        "refit_studies": len(x),
        **chosen._asdict(),
        "converged": probe.converged,
        "accuracy": scores.get("accuracy"),
        "macro_auroc": scores["macro_auroc"],
    } | {name: single[name] for name in SINGLE_LABEL if name in single}


def protocol(refit: Refit, select: Select, validation: int) -> str:
    """Says in words what the classifiers were fitted on and what chose their weight decay.

    Args:
        refit: What the last classifier is fitted on.
        select: What chose the weight decay.
        validation: Studies of the validation set.
    """
    fitted = "fitted on the share of training alone"
    if refit == "train+val":
        fitted = f"fitted on the share of training and {validation} validation studies"
    where = f"on {validation} validation studies" if select == "val" else "by cross-validation inside the share"
    return f"{fitted}, weight decay chosen {where}"


def _majority_share(labels: NDArray[np.float64]) -> float | None:
    """Returns the share of the most frequent class among the labelled studies."""
    counts = (labels[~np.isnan(labels).any(axis=1)] == 1).sum(axis=0)
    return float(counts.max() / counts.sum()) if counts.sum() else None


def _fraction(fraction: float, subsets: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "fraction": fraction,
        "accuracy": _spread([subset["accuracy"] for subset in subsets]),
        "macro_auroc": _spread([subset["macro_auroc"] for subset in subsets]),
        **{
            name: _spread([subset[name] for subset in subsets])
            for name in SINGLE_LABEL
            if all(name in subset for subset in subsets)
        },
        "subsets": subsets,
    }


def _spread(values: list[float | None]) -> dict[str, Any]:
    """Computes mean and sample standard deviation; the latter needs two values."""
    known = [value for value in values if value is not None]
    return {
        "mean": float(np.mean(known)) if known else None,
        "sd": float(np.std(known, ddof=1)) if len(known) > 1 else None,
        "values": values,
    }


def _routing(session: ModelSession, features: Features, kind: Kind) -> dict[str, Any] | None:
    """Describes which experts the features of the test split come from; ``None`` for features without an expert."""
    if kind == "global" or features.experts is None:
        return None
    by = session.route_on
    counts = np.bincount(features.experts, minlength=as_run(session).model.config.num_experts)
    return {"route_on": by, "by": "label" if by == "text" else by, "test_counts": counts.tolist()}
