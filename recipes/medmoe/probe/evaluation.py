"""Linear probing of one set: subsets of its training split, the weight decay chosen on validation, the test scored."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from recipes.data.evaluation.types import EvaluationSet
from recipes.data.studies import SPLITS
from recipes.medmoe.inference.local_scoring import as_run
from recipes.medmoe.inference.session import ModelSession
from recipes.medmoe.probe.features import Features, set_features
from recipes.medmoe.probe.linear import fit_probe, predict_probe, validation_score
from recipes.medmoe.probe.subsets import draw_subset
from recipes.shared.scores.metrics import evaluate_predictions
from recipes.shared.scores.single_label import single_label_scores

WEIGHT_DECAYS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""The grid: ``mean loss + weight_decay / 2 * |w|^2`` on standardised features."""

SINGLE_LABEL = ("balanced_accuracy", "macro_f1", "kappa")
"""Scores of single-label sets beside accuracy, see `single_label_scores`."""

Kind = Literal["global", "local", "both"]
Refit = Literal["train+val", "train"]


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
    refit: Refit = "train+val",
    modality: str | None = None,
    checkpoint: str = "best",
) -> dict[str, Any]:
    """Probes one set; see :func:`main` for the arguments.

    Returns:
        What ``probe/SET.json`` holds: ``fractions`` lists, for each share, ``accuracy``, ``macro_auroc`` and, of
        single-label sets, ``balanced_accuracy``, ``macro_f1`` and ``kappa`` (each ``mean``, ``sd`` and ``values``, one
        per subset), and ``subsets`` (seed, studies, chosen weight decay).

    Raises:
        ValueError: If the set has no training or validation split, or an option is out of range.
    """
    missing = [name for name in SPLITS if name not in one.splits]
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
        for name in SPLITS
    }
    parts = {name: _part(one, name, features[name].matrix(kind)) for name in SPLITS}
    rows = []
    for fraction in fractions:
        seeds = range(seed, seed + (1 if fraction == 1 else subsets))
        rows.append(_fraction(fraction, [_one_subset(parts, one, fraction, s, refit) for s in seeds]))
    return {
        "set": one.name,
        "model": session.name,
        "task": one.task,
        "features": kind,
        "dim": parts["train"].features.shape[1],
        "refit": refit,
        "weight_decays": list(WEIGHT_DECAYS),
        "chosen_by": "macro AUROC, then likelihood" if one.task == "multi-label" else "accuracy, then likelihood",
        "studies": {name: len(part.labels) for name, part in parts.items()},
        "chance": None if one.task == "multi-label" else 1 / len(one.classes),
        "routing": _routing(session, features["test"], kind),
        "checkpoint": checkpoint,
        "classes": list(one.classes),
        "notes": list(one.notes),
        "fractions": rows,
    }


def _part(one: EvaluationSet, split: str, features: NDArray[np.float32]) -> Part:
    studies = one.splits[split]
    return Part(features.astype(np.float64), np.asarray(studies.labels, np.float64), list(studies.groups))


def _one_subset(parts: dict[str, Part], one: EvaluationSet, fraction: float, seed: int, refit: Refit) -> dict[str, Any]:
    """Sweeps the weight decay on one subset, trains the best again, and scores it on the test split."""
    train, val, test = (parts[name] for name in SPLITS)
    rows = draw_subset(train.labels, train.groups, fraction, seed)
    x, y = train.features[rows], train.labels[rows]
    tried = []
    # From strong to weak, and only a better one replaces: of equals the strongest stays.
    for weight_decay in sorted(WEIGHT_DECAYS, reverse=True):
        probe = fit_probe(x, y, one.task, weight_decay)
        score = validation_score(predict_probe(probe, val.features, one.task), val.labels, one.task)
        tried.append((score, weight_decay))
    (best, weight_decay) = max(tried, key=lambda pair: pair[0])
    if refit == "train+val":
        x, y = np.concatenate([x, val.features]), np.concatenate([y, val.labels])
    probe = fit_probe(x, y, one.task, weight_decay)
    probs = predict_probe(probe, test.features, one.task)
    scores = evaluate_predictions(probs, test.labels, test.groups, one.classes, task=one.task, bootstrap=0)
    single = single_label_scores(probs, test.labels, test.groups, one.classes, task=one.task, bootstrap=0) or {}
    return {
        "seed": seed,
        "train_studies": len(rows),
        "refit_studies": len(x),
        "weight_decay": weight_decay,
        "val_score": best[0],
        "converged": probe.converged,
        "accuracy": scores.get("accuracy"),
        "macro_auroc": scores["macro_auroc"],
    } | {name: single[name] for name in SINGLE_LABEL if name in single}


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
