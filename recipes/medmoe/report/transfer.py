"""The report's tables of linear probing and of retrieval."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from recipes.medmoe.report.near_duplicates import near_duplicate_lines
from recipes.medmoe.report.run import Run
from recipes.shared.report.formats import DASH, decimals
from recipes.shared.report.tables import Cell, Column, Table

DIRECTIONS = (("image_to_text", "Report for an image"), ("text_to_image", "Image for a report"))
"""Field of ``metrics.json`` and title of each direction of the retrieval."""

SINGLE_LABEL_SCORES = (
    ("macro AUROC", "macro_auroc"),
    ("balanced accuracy", "balanced_accuracy"),
    ("macro F1", "macro_f1"),
    ("Cohen's kappa", "kappa"),
)
"""Title and field of what is shown below the accuracy of single-label sets."""

OLD_PROTOCOL = "not stated (an earlier version, whose default was fitted on training and validation)"
"""What stands for the protocol of a probe whose result does not name it."""


@dataclass(frozen=True)
class RetrievalSection:
    """Result of the retrieval.

    Attributes:
        table: Recall and median rank in both directions.
        images: Number of images.
        texts: Number of distinct reports.
        split: The split of both.
        score: The similarity that was used.
        near_duplicates: What the images share with the pretraining images, in words.
    """

    table: Table
    images: int
    texts: int
    split: str
    score: str
    near_duplicates: Sequence[str]


@dataclass(frozen=True)
class ProbeSection:
    """Result of linear probing.

    Attributes:
        table: Mean and spread of each set's scores per share of the training set.
        protocols: Name of each set, and what its classifiers were fitted on.
        near_duplicates: What each set shares with the pretraining images, in words.
    """

    table: Table
    protocols: Sequence[tuple[str, str]]
    near_duplicates: Sequence[str]


def probe_section(run: Run) -> ProbeSection | None:
    """Returns the scores of each probed set; ``None`` where none was probed.

    Args:
        run: The run.
    """
    probes = run.section("probe")
    if not probes:
        return None
    shares = sorted({row["fraction"] for probe in probes.values() for row in probe["fractions"]})
    columns = [
        Column("Set", "text"),
        Column("Score", "text"),
        *(Column(f"{100 * share:g}% of training") for share in shares),
        Column("Chance"),
        Column("Majority"),
        Column("Features", "text"),
        Column("Test studies"),
    ]
    table = Table(columns, [row for name, probe in probes.items() for row in _probe_rows(name, probe, shares)])
    protocols = [(name, str(probe.get("protocol") or OLD_PROTOCOL)) for name, probe in probes.items()]
    return ProbeSection(table, protocols, near_duplicate_lines(probes))


def retrieval_section(run: Run) -> RetrievalSection | None:
    """Returns recall at K and median rank in both directions beside chance; ``None`` where retrieval was not run.

    Args:
        run: The run.
    """
    retrieval = run.section("retrieval")
    if not retrieval:
        return None
    recalls = list(retrieval[DIRECTIONS[0][0]]["recall"])
    titles = [*(f"R@{k}" for k in recalls), "Median rank", "Queries", "Candidates"]
    rows: list[list[Cell]] = []
    for field, title in DIRECTIONS:
        scores = retrieval[field]
        sizes = [f"{scores['queries']:,}", f"{scores['candidates']:,}"]
        rows.append([title, *_ranks(scores, recalls), *sizes])
        rows.append(["by chance", *_ranks(scores["chance"], recalls), "", ""])
    table = Table([Column("Retrieved", "text"), *map(Column, titles)], rows)
    score = retrieval["score"].replace("+", " and ")
    overlap = near_duplicate_lines({f"{retrieval['split']} split": retrieval})
    return RetrievalSection(table, retrieval["images"], retrieval["texts"], retrieval["split"], score, overlap)


def _probe_rows(name: str, probe: Mapping[str, Any], shares: list[float]) -> list[list[Cell]]:
    """Returns the row of the set's main score, and one of each other that every share has."""
    is_auroc = probe["task"] == "multi-label"
    chance = decimals(0.5 if is_auroc else probe["chance"])
    first = ("macro AUROC", "macro_auroc") if is_auroc else ("accuracy", "accuracy")
    others = [
        entry for entry in SINGLE_LABEL_SCORES if not is_auroc and all(entry[1] in row for row in probe["fractions"])
    ]
    about = [
        decimals(probe.get("majority_share")),
        str(probe["features"]),
        f"{probe['studies']['test']:,}",
    ]
    rows: list[list[Cell]] = []
    for title, key in (first, *others):
        scores = {row["fraction"]: _spread(row[key], row["subsets"]) for row in probe["fractions"]}
        by_chance = chance if not rows else "0.500" if key == "macro_auroc" else ""
        ends = [by_chance, *([""] * len(about) if rows else about)]
        rows.append(["" if rows else name, title, *(scores.get(share, DASH) for share in shares), *ends])
    return rows


def _spread(spread: Mapping[str, Any], subsets: int) -> str:
    if spread["mean"] is None:
        return "undefined"
    if spread["sd"] is None:
        return decimals(spread["mean"])
    return f"{decimals(spread['mean'])} ± {decimals(spread['sd'])} ({subsets})"


def _ranks(scores: Mapping[str, Any], recalls: list[str]) -> list[str]:
    median = f"{scores['median_rank']:.1f}".removesuffix(".0")
    return [*(decimals(scores["recall"][k]) for k in recalls), median]
